"""On a cluster, chaos takes away one server at a time, in every way that one may be lost."""

from tests.chaos.plan import CLUSTER, DECK, plan


def test_a_round_on_a_cluster_loses_servers_in_every_way() -> None:
    planned = plan(1, 180, cluster=True)
    assert {fault.kind for fault in planned} == set(DECK)
    for kind, ways in CLUSTER.items():
        assert {fault.variant for fault in planned if fault.kind == kind} == set(ways), kind


def test_a_round_on_single_servers_freezes_none() -> None:
    ways = {fault.variant for fault in plan(1, 180) if fault.kind in CLUSTER}
    assert ways == {"kill", "stop"}
