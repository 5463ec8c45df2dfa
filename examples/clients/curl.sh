#!/bin/sh
# curl: sh curl.sh http://127.0.0.1:8000/v1 MODEL PROMPT
curl --silent --show-error --fail "$1/chat/completions" -H 'Content-Type: application/json' -d "{
  \"model\": \"$2\", \"temperature\": 0, \"max_tokens\": 24,
  \"messages\": [{\"role\": \"user\", \"content\": \"$3\"}]
}"
