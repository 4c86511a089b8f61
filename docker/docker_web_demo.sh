#!/usr/bin/env bash
# Starts the server with its chat page in a container.
set -euo pipefail

port=8901
usage() {
    usage_of server "Starts a container that serves a model with a page to chat with it, in the background."
}

# shellcheck source=docker/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
parse_options server "$@"
serve "Chat page" /
