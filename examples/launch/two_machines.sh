#!/usr/bin/env bash
# Runs cartpole_two_machines.py in two network namespaces of this machine, which stand for two machines: they reach each
# other over one cable, with encrypted sockets, and find each other in a Redis on the first.
#
#     examples/launch/two_machines.sh FOLDER [OPTIONS OF headrace launch]
#
# Needs root, the commands ip (iproute2) and redis-server, and the program headrace.
set -euo pipefail
folder=${1:?give a folder for the run}
shift
here=$(dirname "$0")
first=headrace-$$-1 second=headrace-$$-2
for command in ip redis-server headrace; do
    command -v "$command" >/dev/null || { echo "two_machines.sh needs $command" >&2; exit 77; }
done
ip netns add "$first" 2>/dev/null || { echo "two_machines.sh may not make network namespaces here" >&2; exit 77; }
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; ip netns del "$first"; ip netns del "$second" 2>/dev/null || true' EXIT
ip netns add "$second"
ip link add hr$$a netns "$first" type veth peer name hr$$b netns "$second"
ip -n "$first" addr add 10.77.0.1/24 dev hr$$a
ip -n "$second" addr add 10.77.0.2/24 dev hr$$b
for space in "$first hr$$a" "$second hr$$b"; do
    set -- $space "$@"
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
    shift 2
done
ip netns exec "$first" redis-server --bind 10.77.0.1 --port 6379 --save "" --protected-mode no >/dev/null &
common=("$here/cartpole_two_machines.py" --transport zmq --names redis://10.77.0.1:6379 --folder "$folder" "$@")
mkdir -p "$folder"
ip netns exec "$second" headrace launch "${common[@]}" --host 10.77.0.2 --node-rank 1 &
ip netns exec "$first" headrace launch "${common[@]}" --host 10.77.0.1 --node-rank 0
