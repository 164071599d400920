# shellcheck shell=bash disable=SC2034 # read by the scripts that source this one
# The settings of tpu_vm.sh: flags, then the environment, then what stands here. Sourced.

VERBS=(create setup run status logs stop delete)
STATE_AND_NODES='value(state.state,tpu.nodeSpec[].nodeId)'

usage() {
  cat << 'USAGE'
usage: tpu_vm.sh VERB [settings] [-- arguments of `xretrieval train`]

  create    request the TPU, unless it is there; one that was preempted or failed is requested anew
  setup     send the committed code and make its environment, on every worker that lacks it
  run       start training on every worker, or go on: tpu_vm.sh run -- --gin_file=RUN.gin --set WORKDIR=DIR
  status    the request, the workers, whether they train, the last metrics
  logs      follow the log of worker 0, or of --worker=N or all
  stop      save, and end
  delete    the request, its VMs and their disks

Which one, by flag or by the variable of the environment beside it:
  --name NAME  TPU_NAME    --project ID  PROJECT_ID    --zone ZONE  ZONE
create:
  --accelerator-type TYPE  ACCELERATOR_TYPE, as v5litepod-256    --runtime-version VERSION  RUNTIME_VERSION, as v2-alpha-tpuv5-lite
  --slices N (also --node-count; default 1)    --spot or --reserved    --network N    --subnetwork N    --internal-ips
  --service-account EMAIL  whom the VMs act as    --wait SECONDS  until it is active (0)
setup:
  --python VERSION  3.11, 3.12 or 3.13 (3.11)
  --prepare FILE    a script to run on each worker before the installation and before each run; it may be run again
  --secrets FILE    lines NAME=VALUE for the environment of the run, mode 600; a token is never given as a flag
run:
  --restart-on CODES  75 (preempted) and no other, unless told: 75,76    --max-restarts N  (100)    --restart-delay SECONDS  (10)
  --env NAME=VALUE    may be given several times
logs:
  --worker N|all  (0)    --slice N  (0)    --lines N  (100)    --no-follow
stop:  --stop-timeout SECONDS  (600)
delete:  --yes
all:
  --dry-run  print the commands, call nothing    --timeout SECONDS  of a call of gcloud (600)    --install-timeout SECONDS  (3600)
  --attempts N  of a call whose failure may pass (4)    --retry-delay SECONDS  before the second, doubled each time (5)

Exit codes: 0 done, 2 a setting is missing or wrong, 3 a call of gcloud failed (it is named), 4 the request is in another state.
USAGE
}

NAME=${TPU_NAME:-} PROJECT_ID=${PROJECT_ID:-} ZONE=${ZONE:-} ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-} RUNTIME_VERSION=${RUNTIME_VERSION:-}
SLICES=1 SPOT='' RESERVED='' NETWORK='' SUBNETWORK='' INTERNAL_IPS='' SERVICE_ACCOUNT='' WAIT=0
PYTHON=3.11 PREPARE='' SECRETS=''
RESTART_ON=75 MAX_RESTARTS=100 RESTART_DELAY=10 ENVIRONMENT=() TRAIN_ARGUMENTS=()
WORKER=0 SLICE=0 LINES_SHOWN=100 FOLLOW=1 STOP_TIMEOUT=600 YES=''
DRY_RUN='' TIMEOUT=600 INSTALL_TIMEOUT=3600 ATTEMPTS=4 RETRY_DELAY=5

# Shapes of tokens and keys, and names that speak of one, in small letters: such a value would stand in process lists and in gcloud's logs. The
# same is in gke/render.py; tests/launch/test_credentials.py holds both against one list.
CREDENTIAL='(hf_|gh[pousr]_|github_pat_|glpat-|xox[bp]-)[A-Za-z0-9_-]{10,}|AIza[A-Za-z0-9_-]{20,}|A[KS]IA[A-Z0-9]{12,}|ya29\.|sk-[A-Za-z0-9_-]{16,}|PRIVATE KEY-----'
# A password in a URL.
CREDENTIAL+='|://[^/@[:space:]]*:[^/@[:space:]]+@'
CREDENTIAL_NAME='^(--?|--env=|--gin\.|--set=)?[a-z0-9_.-]*(token|secret|credentials?|pass(word|wd|phrase)|[_-](pass|pwd)'
CREDENTIAL_NAME+='|(api|access|account|auth|encryption|master|private|secret|signing|ssh)[_-]?keys?)(=|$)'

read_settings() {
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die 2 "bash $BASH_VERSION is too old; 4.4 or later is needed"
  VERB=${1:-}
  if [[ -z $VERB || $VERB == -h || $VERB == --help ]]; then
    usage
    if [[ $VERB ]]; then exit 0; else exit 2; fi
  fi
  [[ " ${VERBS[*]} " == *" $VERB "* ]] || die 2 "no verb $VERB; there are ${VERBS[*]}"
  shift
  refuse_credentials "$@"
  read_flags "$@"
  check_settings
  if [[ ! $DRY_RUN ]]; then command -v gcloud > /dev/null || die 2 "gcloud is not on the PATH: install the Google Cloud CLI"; fi
  # --quiet: a question that nobody answers must not hang.
  WHERE=(--project="$PROJECT_ID" --zone="$ZONE" --quiet) SSH=()
  if [[ $INTERNAL_IPS ]]; then SSH=(--internal-ip); fi
}

read_flags() {
  local flag
  while (($#)); do
    flag=$1
    case $flag in
      --)
        TRAIN_ARGUMENTS=("${@:2}")
        return
        ;;
      --help | -h) usage && exit 0 ;;
      --spot) SPOT=1 ;;
      --reserved) RESERVED=1 ;;
      --internal-ips) INTERNAL_IPS=1 ;;
      --no-follow) FOLLOW='' ;;
      --yes) YES=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --*=*)
        set_flag "${flag%%=*}" "${flag#*=}"
        ;;
      --*)
        # First, for a flag that there is not has no missing value.
        set_flag "$flag" "${2:-}"
        (($# >= 2)) || die 2 "$flag: no value"
        shift
        ;;
      *) die 2 "${flag@Q}: not a flag; arguments of \`xretrieval train\` stand after --" ;;
    esac
    shift
  done
}

set_flag() {
  case $1 in
    --name) NAME=$2 ;;
    --project) PROJECT_ID=$2 ;;
    --zone) ZONE=$2 ;;
    --accelerator-type) ACCELERATOR_TYPE=$2 ;;
    --runtime-version) RUNTIME_VERSION=$2 ;;
    --slices | --node-count) SLICES=$2 ;;
    --network) NETWORK=$2 ;;
    --subnetwork) SUBNETWORK=$2 ;;
    --service-account) SERVICE_ACCOUNT=$2 ;;
    --wait) WAIT=$2 ;;
    --python) PYTHON=$2 ;;
    --prepare) PREPARE=$2 ;;
    --secrets) SECRETS=$2 ;;
    --restart-on) RESTART_ON=$2 ;;
    --max-restarts) MAX_RESTARTS=$2 ;;
    --restart-delay) RESTART_DELAY=$2 ;;
    --env) ENVIRONMENT+=("$2") ;;
    --worker) WORKER=$2 ;;
    --slice) SLICE=$2 ;;
    --lines) LINES_SHOWN=$2 ;;
    --stop-timeout) STOP_TIMEOUT=$2 ;;
    --timeout) TIMEOUT=$2 ;;
    --install-timeout) INSTALL_TIMEOUT=$2 ;;
    --attempts) ATTEMPTS=$2 ;;
    --retry-delay) RETRY_DELAY=$2 ;;
    --spot | --reserved | --internal-ips | --no-follow | --yes | --dry-run) die 2 "$1: takes no value" ;;
    *) die 2 "$1: no such flag; see --help" ;;
  esac
}

looks_like_a_credential() { [[ $1 =~ $CREDENTIAL || ${1,,} =~ $CREDENTIAL_NAME ]]; }

# Says which argument, never its value.
refuse_credentials() {
  local argument position=1
  for argument in "$@"; do
    position=$((position + 1))
    if looks_like_a_credential "$argument"; then
      die 2 "argument $position looks like a credential: it would stand in process lists and logs; put it in a file for setup --secrets"
    fi
  done
}

# need NAME ...: a message for each that is missing, then the end.
need() {
  local setting missing=''
  for setting in "$@"; do
    if [[ ! ${!setting} ]]; then
      missing=1
      say "$setting is missing: $(flag_of "$setting")"
    fi
  done
  if [[ $missing ]]; then exit 2; fi
}

flag_of() {
  case $1 in
    NAME) echo "give --name NAME, or set TPU_NAME" ;;
    PROJECT_ID) echo "give --project ID, or set PROJECT_ID" ;;
    ZONE) echo "give --zone ZONE, or set ZONE" ;;
    ACCELERATOR_TYPE) echo "give --accelerator-type TYPE, or set ACCELERATOR_TYPE" ;;
    RUNTIME_VERSION) echo "give --runtime-version VERSION, or set RUNTIME_VERSION" ;;
  esac
}

check_settings() {
  local setting code='([1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])'
  for setting in SLICES WAIT MAX_RESTARTS RESTART_DELAY SLICE LINES_SHOWN STOP_TIMEOUT TIMEOUT INSTALL_TIMEOUT ATTEMPTS RETRY_DELAY; do
    [[ ${!setting} =~ ^[0-9]+$ ]] || die 2 "$setting is ${!setting@Q}: must be a whole number"
  done
  ((SLICES >= 1 && ATTEMPTS >= 1 && TIMEOUT >= 1)) || die 2 "slices, attempts and timeout must be 1 or more"
  [[ $RESTART_ON =~ ^$code(,$code)*$ ]] || die 2 "--restart-on ${RESTART_ON@Q}: must be exit codes from 1 to 255, as 75 or 75,76"
  [[ $PYTHON =~ ^3\.1[123]$ ]] || die 2 "--python ${PYTHON@Q}: must be 3.11, 3.12 or 3.13"
  [[ $WORKER =~ ^([0-9]+|all)$ ]] || die 2 "--worker ${WORKER@Q}: must be a number or all"
  # The API's "tier" is one of both (queuedResources: spot, or guaranteed, which holds reserved); gcloud would send both.
  if [[ $SPOT && $RESERVED ]]; then die 2 "--spot and --reserved: a request is one or the other; give one of them"; fi
  # What gcloud takes for a name, or would take for a flag.
  [[ ! $NAME || $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || die 2 "--name ${NAME@Q}: must be of small letters, digits and hyphens, and begin with a letter"
  for setting in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    [[ $setting =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die 2 "--env: must be NAME=VALUE"
  done
  if [[ $PREPARE && ! -f $PREPARE ]]; then die 2 "--prepare ${PREPARE@Q}: no such file"; fi
  if [[ $SECRETS ]]; then
    [[ -f $SECRETS ]] || die 2 "--secrets ${SECRETS@Q}: no such file"
    [[ $(stat -L -c %a -- "$SECRETS") =~ ^[0-7]?[0-7]00$ ]] || die 2 "--secrets ${SECRETS@Q}: others can read it; chmod 600"
  fi
}
