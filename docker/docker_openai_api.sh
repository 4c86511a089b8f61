#!/usr/bin/env bash
# Starts the server with OpenAI's API in a container.
set -euo pipefail

port=8000
usage() {
    usage_of server "Starts a container that serves a model with OpenAI's API, in the background."
}

# shellcheck source=docker/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
parse_options server "$@"
serve "OpenAI's API" /v1 --no-page
