#!/bin/sh
# Before `parley up`: builds the TensorRT engine of this node's GPU, or takes it from the store that
# PARLEY_MODEL_ENGINES names, with the deploy file that will be served. Then becomes the command.
set -eu

config=
previous=
for word in "$@"; do
    case $word in --config=*) config=${word#--config=} ;; esac
    case $previous in --config) config=$word ;; esac
    previous=$word
done

if [ "${1-}" = parley ] && [ "${2-}" = up ]; then
    parley model build ${config:+--config "$config"}
fi
exec "$@"
