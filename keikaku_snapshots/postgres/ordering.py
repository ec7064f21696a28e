"""Order of tables by their references: circles allowed, always the same result."""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Node = TypeVar("Node", bound=Any)


def order_by_references(
    nodes: Iterable[Node],
    hard: Collection[tuple[Node, Node]],
    soft: Collection[tuple[Node, Node]] = (),
) -> tuple[list[Node], list[list[Node]]]:
    """Order nodes so that what is referred to comes first.

    Args:
        nodes: Everything to order; equal input gives equal output.
        hard: Pairs (child, parent) that must hold where they can.
        soft: Pairs that give way first inside a circle.

    Returns:
        The order, and the circles as sorted groups.
    """
    everything = sorted(set(nodes))
    edges = {(child, parent) for child, parent in {*hard, *soft} if child != parent}
    groups = _circles(everything, edges)
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    between = {(group_of[child], group_of[parent]) for child, parent in edges}
    firsts = [group[0] for group in groups]
    order: list[Node] = []
    for number in _kahn(range(len(groups)), {pair for pair in between if pair[0] != pair[1]}, firsts):
        group = groups[number]
        order += group if len(group) == 1 else _inside_circle(group, set(hard))
    return order, sorted(group for group in groups if len(group) > 1)


def _inside_circle(group: list[Node], hard: set[tuple[Node, Node]]) -> list[Node]:
    """By the hard references alone; where these make a circle too, by name."""
    members = set(group)
    kept = {pair for pair in hard if pair[0] in members and pair[1] in members and pair[0] != pair[1]}
    smaller = _circles(group, kept)
    number_of = {node: number for number, part in enumerate(smaller) for node in part}
    between = {(number_of[child], number_of[parent]) for child, parent in kept}
    firsts = [part[0] for part in smaller]
    pairs = {pair for pair in between if pair[0] != pair[1]}
    return [node for number in _kahn(range(len(smaller)), pairs, firsts) for node in smaller[number]]


def _kahn(numbers: Iterable[int], pairs: set[tuple[int, int]], names: list[Any]) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    waiting: dict[int, int] = dict.fromkeys(numbers, 0)
    for child, parent in pairs:
        children[parent].append(child)
        waiting[child] += 1
    ready = [(names[number], number) for number, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, number = heapq.heappop(ready)
        order.append(number)
        for child in children[number]:
            waiting[child] -= 1
            if waiting[child] == 0:
                heapq.heappush(ready, (names[child], child))
    return order


def _circles(nodes: list[Node], edges: Collection[tuple[Node, Node]]) -> list[list[Node]]:
    """Strongly connected groups (Kosaraju), without recursion: chains may be thousands long."""
    forward: dict[Node, list[Node]] = defaultdict(list)
    backward: dict[Node, list[Node]] = defaultdict(list)
    for child, parent in edges:
        forward[child].append(parent)
        backward[parent].append(child)
    finished: list[Node] = []
    seen: set[Node] = set()
    for node in nodes:
        finished += _depth_first(node, forward, seen)
    seen = set()
    groups = [sorted(_depth_first(node, backward, seen)) for node in reversed(finished) if node not in seen]
    return sorted(groups)


def _depth_first(start: Node, edges: dict[Node, list[Node]], seen: set[Node]) -> list[Node]:
    """Nodes reached from a start, each after everything that is reached from it."""
    if start in seen:
        return []
    seen.add(start)
    finished: list[Node] = []
    stack = [(start, iter(edges[start]))]
    while stack:
        node, following = stack[-1]
        step = next((other for other in following if other not in seen), None)
        if step is None:
            stack.pop()
            finished.append(node)
        else:
            seen.add(step)
            stack.append((step, iter(edges[step])))
    return finished
