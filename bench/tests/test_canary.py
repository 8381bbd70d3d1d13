from __future__ import annotations

from bridge_bench.canary import CanaryBird


def test_a_quiet_machine_keeps_every_block() -> None:
    bird = CanaryBird(0.1, 0.2)
    assert all(bird.accepts(0.005 * factor) for factor in (1, 1.05, 0.95, 1.09, 1, 1.08))
    assert (bird.redone, bird.is_noisy, len(bird.times_s)) == (0, False, 6)


def test_a_disturbed_block_is_redone_whichever_way_it_is_off() -> None:
    for factor in (1.2, 0.8):
        bird = CanaryBird(0.1, 0.2)
        for _ in range(5):
            assert bird.accepts(0.005)
        assert not bird.accepts(0.005 * factor)
        assert bird.accepts(0.005)
        assert (bird.redone, bird.is_noisy) == (1, False)
        assert bird.times_s == [0.005] * 6


def test_the_first_blocks_have_nothing_to_be_compared_with() -> None:
    bird = CanaryBird(0.1, 0.2)
    assert all(bird.accepts(time) for time in (0.005, 0.05, 0.001, 0.02, 0.005))
    assert not bird.is_noisy


def test_a_noisy_machine_is_told_after_a_fifth_was_redone() -> None:
    bird = CanaryBird(0.1, 0.2)
    for _ in range(5):
        bird.accepts(0.005)
    kept = sum(bird.accepts(0.01) for _ in range(40))
    assert bird.is_noisy
    assert bird.redone == 40 - kept
    assert 0 < bird.redone <= 0.2 * (5 + 40) + 1
    # What is kept becomes the new usual.
    assert bird.accepts(0.01)


def test_it_times_real_work() -> None:
    assert 0 < CanaryBird(0.1, 0.2).sing() < 10
