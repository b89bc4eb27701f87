# Shell functions of vagrant/provision: whether what it has set up in a host works.
#
# For bash with `set -euo pipefail`, beside packaging/lib.sh. Whoever calls `check` sets before:
#
#   name ip          this host, and its address
#   other other_ip   the other one
#   wait_limit       how many seconds the other host's etcd is waited for
#   again            the command to run again once what was wrong is set right
#
# shellcheck shell=bash
# shellcheck disable=SC2154 # these come from outside

member_status=/run/etcd-member # what the etcd member says of itself

get() { curl --silent --noproxy '*' --max-time 3 "$@"; }

# wait_for LIMIT COMMAND...: until it succeeds; shows what the etcd member says of itself meanwhile.
shown=''
show_member() {
    local now
    now=$(cat "$member_status" 2>/dev/null) || now=''
    if [ -n "$now" ] && [ "$now" != "$shown" ]; then say "$now"; fi
    shown=$now
}
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        show_member
        if [ $SECONDS -ge "$deadline" ]; then return 1; fi
        sleep 0.5
    done
    show_member
}

# Etcd says so only after a read that a majority has confirmed.
etcd_is_healthy() { [ "$(get "http://$ip:2379/health" | jq -r .health)" = true ]; }
# The other host's etcd answers, but has had no leader for a while; right after its start that is as it should be.
etcd_is_lost() {
    if [[ $(cat "$member_status" 2>/dev/null) != *'has lost its other member'* ]]; then lost_since=$SECONDS; fi
    [ $((SECONDS - lost_since)) -ge "$settle_limit" ]
}
# It belongs to a cluster of two, and the other has not answered for a while.
etcd_is_cut_off() {
    if [ "$(jq length <<<"$members")" != 2 ] || get --output /dev/null "http://$other_ip:2380/members"; then
        cut_off_since=$SECONDS
    fi
    [ $((SECONDS - cut_off_since)) -ge "$settle_limit" ]
}
# Its status may be from before; `check` looks itself.
etcd_is_parted() { [[ $(cat "$member_status" 2>/dev/null) == *'are two clusters'* ]] && ! etcd-member check; }
etcd_waits() { [[ $(cat "$member_status" 2>/dev/null) == Waiting* ]]; }

# One look at etcd: leaves in `etcd` what it has come to, and succeeds where that is no state in between two others. Whatever
# is said of it comes from this one look. Who asked a good host a second time could meet the moment in which the other one joins:
# from then on a majority takes both, and the other one has still to start.
look_at_etcd() {
    local now
    # It tells its members at the port for them, where it answers also when it was started without a majority.
    now=$(get "http://$ip:2380/members") || now=''
    if [ "$now" != "$members" ]; then
        # One that does not answer for a moment is not another cluster.
        if [ -n "$now" ] && [ "$now" != "$last_members" ]; then last_members=$now changed_at=$SECONDS; fi
        members=$now
    fi
    if etcd_is_healthy; then
        etcd=healthy
    elif etcd_is_lost; then
        etcd=lost
    elif etcd_is_cut_off; then
        etcd=cut-off
    elif etcd_is_parted; then
        etcd=parted
    elif etcd_waits; then
        etcd=waits
        return 1
    else
        etcd=''
        return 1
    fi
}

# Waits until etcd is in a state that stays, for as long as is waited for the other host; a cluster that has changed has its time from
# then on.
settle_etcd() {
    settle_limit=$((wait_limit < 20 ? wait_limit : 20)) # seconds for which an etcd may be in between two states
    etcd='' members='' last_members='' changed_at=$SECONDS lost_since=$SECONDS cut_off_since=$SECONDS
    local left=$wait_limit
    until wait_for "$left" look_at_etcd; do
        left=$((changed_at + settle_limit - SECONDS))
        if [ $left -le 0 ]; then return 0; fi
    done
}

haproxy_answers() { get --output /dev/null "http://$ip/"; }
discoverer_is_ready() { [ -e /etc/haproxy/haproxy.cfg ] && grep -q '^frontend _http' /etc/haproxy/haproxy.cfg && haproxy_answers; }

check_haproxy() {
    wait_for 60 discoverer_is_ready || {
        journalctl --no-pager --lines 5 --unit discoverer --unit haproxy || true
        die "HAProxy does not answer at http://$ip/ after 60 s; the last words of it and of the discoverer stand above."
    }
}

check() {
    step "Waiting for etcd and HAProxy"
    local words serves=nothing
    settle_etcd
    words=$(etcd-member check 2>&1) || die "${words#etcd-member: }" "When it is put right: $again"
    case $etcd in
    healthy) ;;
    waits)
        say "" "$name goes on waiting in the background, and works as soon as $other is there: vagrant up $other"
        return 0
        ;;
    cut-off)
        if get --output /dev/null "http://$ip:2379/version"; then serves="reads only"; fi
        say "$other is down: etcd answers $serves until \`vagrant up $other\`." \
            "If $other is lost for good: vagrant ssh $name -c 'sudo etcd-member alone'"
        check_haproxy
        say "HAProxy answers at http://$ip/ and serves what was registered before."
        return 0
        ;;
    *)
        docker logs --tail 5 etcd 2>/dev/null || true
        die "The etcd of this host is not healthy after $SECONDS s: $(cat "$member_status" 2>/dev/null)" \
            "See: vagrant ssh $name -c 'sudo journalctl -u etcd-member; docker logs etcd'" "When it is put right: $again"
        ;;
    esac
    check_haproxy
    say "etcd members: $(get "http://$ip:2379/v2/machines")"
    cat <<END
$name is ready. What to try (the whole tour: docs/vagrant.md):
  vagrant ssh $name
  docker run -d -p 8000 -v /var/run/docker.sock:/var/run/docker.sock -e IP=$ip --link etcd:etcd local/dockreg
  curl http://$ip:2379/v2/keys/service
  curl http://$ip/
END
}
