#!/usr/bin/env bash
# Makes the Secrets that the manifests refer to, none of which lies in the repository. Passwords are
# random and are printed nowhere; certificates are signed by an authority made on the spot, whose key is
# thrown away. Run it again to change them all.
#
#   k8s/secrets.sh keys.json | kubectl apply -f -
#
# keys.json: the API keys' hashes, as `parley key create` writes them to PARLEY_HOME.
# METRICS_KEY in the environment: the API key, of those, that Prometheus is to send.
# ENCRYPTION_KEYS in the environment, if it is set: the keys that conversations are encrypted with, as
# ID:BASE64, newest last, with commas between. Without it a new one is made, which opens nothing that an
# older one has sealed.
set -euo pipefail
umask 077

namespace=parley
keys=${1:?"name the file of API keys: k8s/secrets.sh keys.json"}
: "${METRICS_KEY:?"set METRICS_KEY to the API key that Prometheus is to send"}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key_file=$(realpath "$keys")
cd "$work"

secret() {
    local name=$1
    shift
    kubectl create secret generic "$name" --namespace "$namespace" "$@" --dry-run=client -o yaml
    echo ---
}
password() { openssl rand -hex 32; }
hash_of() { printf %s "$1" | openssl dgst -sha256 -r | cut -d' ' -f1; }

parley=$(password) ray=$(password) probe=$(password) replica=$(password) sentinel=$(password)

# Each user may do what its program does, and no more. Only hashes are written down for Redis.
cat >users.acl <<EOF
user default off
user parley on #$(hash_of "$parley") ~parley:* +@read +@write +@connection +@transaction +@scripting -@dangerous +wait
user ray on #$(hash_of "$ray") ~RAY* ~DUMMY +@read +@write +@connection +@transaction -@dangerous +info
user probe on #$(hash_of "$probe") +ping +info
user replica on #$(hash_of "$replica") +psync +replconf +ping
user sentinel on #$(hash_of "$sentinel") &* +multi +slaveof +ping +exec +subscribe +config|rewrite +role +publish +info +client|setname +client|kill +script|kill
EOF

openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days 825 -subj "/CN=parley-redis authority" \
    -keyout ca.key -out ca.crt 2>/dev/null
openssl req -new -newkey rsa:3072 -nodes -subj "/CN=parley-redis" -keyout tls.key -out tls.csr 2>/dev/null
cat >names.ext <<EOF
subjectAltName = DNS:parley-redis, DNS:parley-redis.$namespace, DNS:parley-redis.$namespace.svc, DNS:parley-redis.$namespace.svc.cluster.local, DNS:*.parley-redis-nodes.$namespace.svc.cluster.local, DNS:localhost
EOF
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -sha256 \
    -extfile names.ext -out tls.crt 2>/dev/null

printf %s "$(password)" >auth_token
printf 'rediss://parley:%s@parley-redis:6379/0?ssl_ca_certs=/etc/parley/redis-ca/ca.crt' "$parley" >url
printf %s "$ray" >ray-password
printf %s "$probe" >probe-password
printf %s "$replica" >replica-password
printf %s "$sentinel" >sentinel-password
printf %s "$METRICS_KEY" >key
printf %s "${ENCRYPTION_KEYS:-$(openssl rand -hex 4):$(openssl rand -base64 32)}" >keys

secret parley-redis-acl --from-file=users.acl --from-file=ray-password --from-file=probe-password \
    --from-file=replica-password --from-file=sentinel-password
secret parley-redis-tls --from-file=ca.crt --from-file=tls.crt --from-file=tls.key
secret parley-redis-url --from-file=url
secret parley-encryption-keys --from-file=keys
secret parley-ray-token --from-file=auth_token
secret parley-api-keys --from-file=keys.json="$key_file"
secret parley-metrics-key --from-file=key
