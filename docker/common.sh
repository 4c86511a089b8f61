# shellcheck shell=bash
# What the docker_*.sh scripts share: options, checks, and the arguments every container gets. Sourced, not run.

script=$(basename "$0")
image='' checkpoint='' model='' served_name='' name='qwen' address='127.0.0.1' gpus='' key_file=''
run_arguments=() model_arguments=() more_arguments=()

fail() {
    printf '%s: %s\n' "$script" "$1" >&2
    exit 2
}

# usage_of KIND WHAT: KIND is server or chat.
usage_of() {
    cat <<END
Usage: $script [options] [-- options of qwenkit $([ "$1" = chat ] && echo chat || echo serve)]

$2

  -c, --checkpoint PATH        model folder or .gguf file of this machine
  -m, --model NAME             or an id of a hub, such as Qwen/Qwen2.5-0.5B-Instruct (without both: smollm2-135m)
  -i, --image IMAGE            image to run (localhost/qwenkit:cpu, with --gpus localhost/qwenkit:cuda)
  -n, --name NAME              name of the container ($name)
  -g, --gpus WHICH             all, or numbers such as 0 or 0,1
END
    [ "$1" = chat ] || cat <<END
  -p, --port PORT              port of this machine ($port)
      --bind ADDRESS           address of this machine ($address; 0.0.0.0 lets other machines in)
  -k, --api-key-file FILE      file with one API key per line, without which anyone who reaches the port may ask
END
    cat <<END
  -h, --help                   this text

--image-name and --container-name mean --image and --name. CONTAINER_ENGINE chooses between docker and podman.
END
}

# The value of an option, which must be there and not be empty.
value_of() {
    [ "$2" -ge 2 ] && [ -n "$3" ] || fail "$1 needs a value; see $script --help"
    printf '%s' "$3"
}

# parse_options KIND ARGUMENT...: KIND is server or chat; only a server has a port.
parse_options() {
    local kind=$1 option
    shift
    while [ $# -gt 0 ]; do
        option=$1
        case $option in
            --?*=*)
                shift
                set -- "${option%%=*}" "${option#*=}" "$@"
                continue
                ;;
            -h | --help) usage; exit 0 ;;
            --) shift; more_arguments=("$@"); return ;;
        esac
        case $option in
            -i | --image | --image-name) image=$(value_of "$option" $# "${2-}") || exit 2 ;;
            -c | --checkpoint) checkpoint=$(value_of "$option" $# "${2-}") || exit 2 ;;
            -m | --model) model=$(value_of "$option" $# "${2-}") || exit 2 ;;
            -n | --name | --container-name) name=$(value_of "$option" $# "${2-}") || exit 2 ;;
            -g | --gpus) gpus=$(value_of "$option" $# "${2-}") || exit 2 ;;
            -p | --port | --bind | -k | --api-key-file)
                [ "$kind" = server ] || fail "$option is for the servers; a chat at the terminal has none"
                parse_server_option "$option" "$(value_of "$option" $# "${2-}")" || exit 2
                ;;
            *) fail "$option is no option of this script; see $script --help, and put options of qwenkit behind --" ;;
        esac
        shift 2
    done
}

parse_server_option() {
    [ -n "$2" ] || exit 2
    case $1 in
        -p | --port) port=$2 ;;
        --bind) address=$2 ;;
        *) key_file=$2 ;;
    esac
}

check_port() {
    case $port in
        *[!0-9]* | ??????*) fail "port '$port' is not possible; use a number from 1 to 65535" ;;
    esac
    if [ "$((10#$port))" -lt 1 ] || [ "$((10#$port))" -gt 65535 ]; then
        fail "port '$port' is not possible; use a number from 1 to 65535"
    fi
}

check_name() {
    [[ $name =~ ^[a-zA-Z0-9][a-zA-Z0-9_.-]+$ ]] ||
        fail "container name '$name' is not possible; use letters, digits, '_', '.' and '-'"
}

check_gpus() {
    [[ $gpus =~ ^(|all|[0-9]+(,[0-9]+)*)$ ]] ||
        fail "--gpus '$gpus' is not possible; use all, or numbers of GPUs such as 0 or 0,1"
}

# What docker runs it with: $CONTAINER_ENGINE, else docker, else podman.
find_engine() {
    engine=${CONTAINER_ENGINE:-}
    if [ -z "$engine" ]; then
        engine=docker
        command -v docker >/dev/null || engine=podman
    fi
    command -v "$engine" >/dev/null ||
        fail "there is no '$engine' here; install docker or podman, or name another with CONTAINER_ENGINE"
    "$engine" version >/dev/null 2>&1 ||
        fail "$engine is here but does not answer; '$engine version' says why (a service that is stopped, or no right to use it)"
}

# Only an image that was named is fetched: whoever owns the name of ours in some public registry is nobody we know.
find_image() {
    local given=$image target=cpu
    [ -z "$gpus" ] || target=cuda
    image=${image:-localhost/qwenkit:$target}
    "$engine" image inspect "$image" >/dev/null 2>&1 && return
    [ -n "$given" ] || fail "the image $image is not built yet; run docker/build.sh $target, or name another with --image"
    "$engine" pull "$image" >&2 || fail "the image $image is not here and cannot be fetched; see the lines above"
}

find_name() {
    if "$engine" container inspect "$name" >/dev/null 2>&1; then
        fail "there is a container '$name' already; remove it with '$engine rm -f $name', or choose another --name"
    fi
}

absolute() {
    local folder
    folder=$(cd -- "$(dirname -- "$1")" && pwd) || exit 2
    printf '%s/%s' "${folder%/}" "$(basename -- "$1")"
}

# add_mount SOURCE TARGET: --mount wants comma-separated values, in which quotes let commas be.
add_mount() {
    local source="source=$1"
    case $1 in *[,\"]*) source="\"${source//\"/\"\"}\"" ;; esac
    run_arguments+=(--mount "type=bind,$source,target=$2,readonly")
}

# The checkpoint is mounted under its own name, which servers also give it in requests.
find_model() {
    [ -z "$checkpoint" ] || [ -z "$model" ] || fail "--checkpoint and --model are two ways to name one model; give one"
    if [ -n "$model" ]; then
        model_arguments=(--model "$model")
    elif [ -n "$checkpoint" ]; then
        find_checkpoint
    fi
}

find_checkpoint() {
    local path inside
    [ -e "$checkpoint" ] ||
        fail "there is no '$checkpoint'; give a model folder or a .gguf file, or an id of a hub with --model"
    if [ -d "$checkpoint" ]; then
        path=$(cd -- "$checkpoint" && pwd) || exit 2
        holds_model "$path" ||
            fail "the folder '$checkpoint' holds neither config.json nor a .gguf file, so it is no model folder"
        check_links "$path"
    else
        case $checkpoint in
            *.gguf) path=$(absolute "$checkpoint") || exit 2 ;;
            *) fail "'$checkpoint' is a file but not a .gguf; give a .gguf file, or the folder that holds config.json" ;;
        esac
    fi
    inside=$(basename -- "$path" | tr -c 'A-Za-z0-9._\n-' '_')
    add_mount "$path" "/models/$inside"
    model_arguments=(--model "/models/$inside")
    served_name=${inside%.gguf}
}

holds_model() {
    local file
    for file in "$1"/config.json "$1"/adapter_config.json "$1"/*.gguf; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

# The cache of a hub holds links to files elsewhere, which would lead nowhere inside.
check_links() {
    local file target
    for file in "$1"/*; do
        [ -L "$file" ] || continue
        target=$(readlink -f -- "$file") || target=''
        case $target in
            "$(readlink -f -- "$1")"/*) ;;
            *) fail "'$file' is a link to a file outside of '$1', which a container cannot follow; copy the folder with 'cp -rL', or give the id of the hub with --model" ;;
        esac
    done
}

add_key_file() {
    [ -n "$key_file" ] || return 0
    [ -f "$key_file" ] || fail "there is no file '$key_file'; write one API key per line into it"
    local path
    path=$(absolute "$key_file") || exit 2
    add_mount "$path" /run/secrets/api_keys
    model_arguments+=(--api-key-file /run/secrets/api_keys)
}

# No rights, nothing to write but the volume of models and a /tmp in memory.
add_limits() {
    run_arguments+=(
        --name "$name" --read-only --tmpfs '/tmp:rw,nosuid,nodev,size=512m' --cap-drop ALL
        --security-opt no-new-privileges --volume qwenkit-cache:/cache
    )
    local variable
    for variable in HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE; do
        [ -z "${!variable:-}" ] || run_arguments+=(--env "$variable")
    done
    [ -n "$gpus" ] || return 0
    case $engine:$gpus in
        *podman:*)
            local number
            for number in ${gpus//,/ }; do run_arguments+=(--device "nvidia.com/gpu=$number"); done
            ;;
        *:all) run_arguments+=(--gpus all) ;;
        *) run_arguments+=(--gpus "\"device=$gpus\"") ;;
    esac
}

prepare() {
    check_name
    check_gpus
    find_engine
    find_model
    add_limits
    find_image
    find_name
}

# serve WHAT PATH [OPTION...]: a server in the background, until it is removed. WHAT is printed with its address and PATH.
serve() {
    local what=$1 path=$2
    shift 2
    check_port
    prepare
    add_key_file
    [ -z "$served_name" ] || model_arguments+=(--served-model-name "$served_name")
    local shown
    case $address in *:*) address=${address#[} address="[${address%]}]" ;; esac
    case $address in 0.0.0.0 | '[::]') shown=localhost ;; *) shown=$address ;; esac
    "$engine" run --detach --restart unless-stopped --stop-timeout 60 --publish "$address:$((10#$port)):8000" \
        "${run_arguments[@]}" "$image" serve --host 0.0.0.0 --port 8000 "$@" \
        ${model_arguments[@]+"${model_arguments[@]}"} ${more_arguments[@]+"${more_arguments[@]}"} >/dev/null ||
        fail "$engine could not start the container; see the lines above"
    printf "%s: http://%s:%d%s\n" "$what" "$shown" "$((10#$port))" "$path"
    printf "It answers once the model is loaded: '%s logs -f %s' shows how far it is.\n" "$engine" "$name"
    printf "'%s rm -f %s' stops and removes it; models that were fetched stay in the volume qwenkit-cache.\n" "$engine" "$name"
}
