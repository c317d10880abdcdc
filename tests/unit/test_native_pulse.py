from headrace.gateways.native.pulse import Pulse

BEAT_MS = 1000


def silence(pulse: Pulse, until_ms: int, *, asks: bool = True) -> tuple[list[int], int]:
    """When it was asked for a sign of life, looked at once a beat, and when it was lost; 0 = never."""
    asked = []
    for now_ms in range(BEAT_MS, until_ms + 1, BEAT_MS):
        silent_ms = pulse.silent_ms(now_ms, 0, excused=False)
        if pulse.lost(silent_ms, BEAT_MS, unread=False):
            return asked, now_ms
        if asks and pulse.due(now_ms, silent_ms, BEAT_MS):
            pulse.asked(now_ms)
            asked.append(now_ms)
    return asked, 0


def test_a_silent_peer_is_asked_once_a_beat_and_then_lost() -> None:
    assert silence(Pulse(0), 10 * BEAT_MS) == ([1000, 2000, 3000], 4000)


def test_nobody_is_lost_who_was_not_asked() -> None:
    assert silence(Pulse(0), 10 * BEAT_MS, asks=False) == ([], 0)


def test_who_reads_nothing_is_lost_unasked() -> None:
    pulse = Pulse(0)
    assert not pulse.lost(pulse.silent_ms(3000, 0, excused=False), BEAT_MS, unread=True)
    assert pulse.lost(pulse.silent_ms(3001, 0, excused=False), BEAT_MS, unread=True)


def test_a_sign_of_life_begins_anew() -> None:
    pulse = Pulse(0)
    silence(pulse, 3 * BEAT_MS)
    assert pulse.silent_ms(3500, 1, excused=False) == 0
    assert pulse.silent_ms(4400, 1, excused=False) == 900
    silent_ms = pulse.silent_ms(7000, 1, excused=False)
    assert (silent_ms, pulse.lost(silent_ms, BEAT_MS, unread=False)) == (3500, False)
    assert pulse.due(7000, silent_ms, BEAT_MS)


def test_who_is_not_listened_to_is_not_silent() -> None:
    pulse = Pulse(0)
    silence(pulse, 3 * BEAT_MS)
    assert pulse.silent_ms(9000, 0, excused=True) == 0
