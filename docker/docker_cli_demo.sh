#!/usr/bin/env bash
# Opens a chat at the terminal, in a container that is removed at the end.
set -euo pipefail

usage() {
    usage_of chat "Opens a chat with a model, in a container that is removed at the end. Text that is piped in is asked once."
}

# shellcheck source=docker/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
parse_options chat "$@"
prepare
run_arguments+=(--rm --interactive --no-healthcheck)
if [ -t 0 ] && [ -t 1 ]; then run_arguments+=(--tty); fi
exec "$engine" run "${run_arguments[@]}" "$image" chat \
    ${model_arguments[@]+"${model_arguments[@]}"} ${more_arguments[@]+"${more_arguments[@]}"}
