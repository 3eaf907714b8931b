#!/bin/sh
# Writes what this node's Redis and Sentinel start with. Both rewrite their files, and a node that comes
# back must follow the primary that the other Sentinels know, not the one there was when it left.
#
# Environment: HOSTNAME, REPLICA_PASSWORD, SENTINEL_PASSWORD. Writes to the folder that $1 names.
set -eu
umask 077

conf=$1
nodes=parley-redis-nodes.parley.svc.cluster.local
primary=

for node in parley-redis-0 parley-redis-1 parley-redis-2; do
    [ "$node" = "$HOSTNAME" ] && continue
    # A node that isn't there yet has no name either.
    primary=$(REDISCLI_AUTH=$SENTINEL_PASSWORD timeout 5 redis-cli --tls \
        --cacert /etc/redis/tls/ca.crt --no-auth-warning -h "$node.$nodes" -p 26379 \
        sentinel get-master-addr-by-name parley 2>/dev/null | head -n 1) || true
    case $primary in
        *".$nodes") break ;;
        *) primary= ;;
    esac
done
# Nobody knows one: this is the first start.
primary=${primary:-parley-redis-0.$nodes}

{
    cat /etc/redis/redis.conf
    echo "replica-announce-ip $HOSTNAME.$nodes"
    echo "masteruser replica"
    echo "masterauth $REPLICA_PASSWORD"
    # A primary that is cut off takes no writes that nobody would ever see.
    echo "min-replicas-to-write 1"
    echo "min-replicas-max-lag 10"
    [ "$primary" = "$HOSTNAME.$nodes" ] || echo "replicaof $primary 6379"
} >"$conf/redis.conf"

cat >"$conf/sentinel.conf" <<EOF
port 0
tls-port 26379
tls-cert-file /etc/redis/tls/tls.crt
tls-key-file /etc/redis/tls/tls.key
tls-ca-cert-file /etc/redis/tls/ca.crt
tls-auth-clients no
tls-replication yes
dir /tmp
requirepass $SENTINEL_PASSWORD
sentinel sentinel-pass $SENTINEL_PASSWORD
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $HOSTNAME.$nodes
sentinel monitor parley $primary 6379 2
sentinel auth-user parley sentinel
sentinel auth-pass parley $SENTINEL_PASSWORD
sentinel down-after-milliseconds parley 5000
sentinel failover-timeout parley 30000
sentinel parallel-syncs parley 1
EOF
