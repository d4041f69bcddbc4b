"""CPU cores per worker on nodes that differ."""

from hypothesis import given
from hypothesis import strategies as st

from recycler.cluster.shares import MIN_SHARE, cpu_share


def test_shares_of_known_clusters():
    assert cpu_share([2], 1) == 2.0 and cpu_share([2], 2) == 1.0 and cpu_share([1, 1], 2) == 1.0
    assert cpu_share([2, 2], 3) == 1.0 and cpu_share([0, 8], 3) == 2.0 and cpu_share([2], 5) == 0.4
    assert cpu_share([], 3) == 1.0 and cpu_share([0], 3) == 1.0 and cpu_share([1], 16) == MIN_SHARE


@given(st.lists(st.integers(0, 64), min_size=1, max_size=8), st.integers(1, 64))
def test_that_many_workers_fit_or_the_share_is_the_smallest(cores, workers):
    share = cpu_share(cores, workers)
    fits = sum(int(node / share + 1e-9) for node in cores) >= workers
    assert share >= MIN_SHARE and (fits or share == MIN_SHARE or not any(cores))
    assert share <= 1 or share == int(share)  # what Ray can count
