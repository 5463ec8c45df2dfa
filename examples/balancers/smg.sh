#!/bin/bash
# smg in front of two processes of `trimode serve` (docs/scale.md). It sends prompts that begin alike to
# the same process, by their text.
#
#   pip install smg
#   trimode serve --port 8001 &  trimode serve --port 8002 &  ./smg.sh
exec smg launch --host 127.0.0.1 --port 8080 \
    --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002 \
    --policy cache_aware \
    --health-check-endpoint /ready --health-check-interval-secs 1 --health-failure-threshold 1 \
    --request-timeout-secs 660 \
    --disable-tokenizer-autoload \
    --prometheus-host 127.0.0.1 --prometheus-port 29000 \
    "$@"
