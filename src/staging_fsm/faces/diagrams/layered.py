"""Places for the boxes and edges of a directed graph, in layers, the same on every machine.

The method is that of Sugiyama, Tagawa and Toda (1981), in whole numbers
throughout, so that no rounding of a processor can move anything:

1. An edge that closes a ring is turned round, and every node gets the layer of
   the longest way to it; nodes that nothing leaves stand in the last one.
2. Between two layers of nodes lies a layer of labels. An edge is cut into pieces
   from layer to layer, and its label is one of the joints: it takes up room like
   a node, so that no two labels and no label and edge can overlap.
3. In each layer the joints are ordered so that few pieces cross.
4. Each joint is drawn towards its neighbours as far as the room allows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

import attrs

SWEEPS: Final = 24
GAP: Final = 16
#: Height between two layers, plus a share of the farthest way an edge goes sideways in it.
LAYER_GAP: Final = 26
SLANT: Final = 9
MARGIN: Final = 16
#: Room of a joint that is only a piece of line.
LINE_WIDTH: Final = 10
#: How far a loop reaches out of its node, and how far apart edges leave a node.
LOOP: Final = 30
PORT_GAP: Final = 18
#: What a group keeps free around it, for its frame.
GROUP_GAP: Final = 18
#: How much harder two pieces of line try to be one straight line than a node its edge.
_STRAIGHT: Final = 8
_BENT: Final = 2
_Wish = tuple[int, int]
#: A weight beyond all others together.
_PINNED: Final = 1_000_000


@attrs.frozen
class Edge:
    """One edge, and the size of its label. The heavier, the straighter it is drawn."""

    id: str
    source: str
    target: str
    width: int
    height: int
    weight: int = 1


@attrs.frozen
class Box:
    """A box by its centre and its size."""

    x: int
    y: int
    width: int
    height: int

    @property
    def left(self) -> int:
        """Return the left side."""
        return self.x - self.width // 2

    @property
    def right(self) -> int:
        """Return the right side."""
        return self.left + self.width

    @property
    def top(self) -> int:
        """Return the upper side."""
        return self.y - self.height // 2

    @property
    def bottom(self) -> int:
        """Return the lower side."""
        return self.top + self.height


@attrs.frozen
class Route:
    """The way of an edge: points in its direction, with vertical tangents, and its label."""

    points: tuple[tuple[int, int], ...]
    label: Box


@attrs.frozen
class Layout:
    """Where everything is."""

    width: int
    height: int
    nodes: Mapping[str, Box]
    routes: Mapping[str, Route]


@attrs.define(eq=False)
class _Link:
    """A piece of an edge between two layers, and how far from its ends' centres it ends."""

    upper: "_Joint"
    lower: "_Joint"
    weight: int
    upper_port: int = 0
    lower_port: int = 0


@attrs.define(eq=False)
class _Joint:
    """A node, a label or a piece of line in one layer; `reach` is its extent to the right."""

    layer: int
    width: int
    height: int
    reach: int
    node: str | None = None
    group: int | None = None
    is_line: bool = False
    x: int = 0
    above: list[_Link] = attrs.field(factory=list)
    below: list[_Link] = attrs.field(factory=list)

    def room_before(self, other: "_Joint") -> int:
        """Return how far from this joint the next one of its layer must at least stand."""
        gap = GAP if self.group == other.group else GAP + GROUP_GAP
        return self.reach + gap + other.width // 2


def layered(
    sizes: Mapping[str, tuple[int, int]],
    edges: Sequence[Edge],
    groups: Sequence[Sequence[str]] = (),
) -> Layout:
    """Return the places of nodes of these sizes, their edges, and the edges' labels.

    The nodes of a group stand side by side wherever they share a layer. An edge
    from a node to itself is a loop on its right side; a node has at most one.
    """
    turned = _rings(sizes, edges)
    layers = _layers(sizes, edges, turned)
    joints, chains = _joints(sizes, edges, turned, layers, groups)
    rows = _ordered(joints)
    _assign_ports(rows)
    _place(rows, chains.values())
    return _layout(rows, edges, turned, chains)


def _rings(nodes: Iterable[str], edges: Sequence[Edge]) -> set[str]:
    """Return the ids of edges that lead back to a node on the way to them."""
    turned: set[str] = set()
    seen: set[str] = set()

    def visit(node: str, way: tuple[str, ...]) -> None:
        seen.add(node)
        for edge in edges:
            if edge.source != node or edge.target == node:
                continue
            if edge.target in (*way, node):
                turned.add(edge.id)
            elif edge.target not in seen:
                visit(edge.target, (*way, node))

    for node in nodes:
        if node not in seen:
            visit(node, ())
    return turned


def _layers(nodes: Iterable[str], edges: Sequence[Edge], turned: set[str]) -> dict[str, int]:
    """Return the layer of each node: even numbers, since labels take the odd ones."""
    layers = dict.fromkeys(nodes, 0)
    ways = [_downwards(edge, turned) for edge in edges if edge.source != edge.target]
    for _ in layers:
        for upper, lower in ways:
            layers[lower] = max(layers[lower], layers[upper] + 2)
    last = max(layers.values(), default=0)
    leaving = {edge.source for edge in edges if edge.source != edge.target}
    entered = {edge.target for edge in edges if edge.source != edge.target}
    return {
        node: last if node in entered and node not in leaving else layer
        for node, layer in layers.items()
    }


def _downwards(edge: Edge, turned: set[str]) -> tuple[str, str]:
    ends = (edge.source, edge.target)
    return ends[::-1] if edge.id in turned else ends


def _joints(
    sizes: Mapping[str, tuple[int, int]],
    edges: Sequence[Edge],
    turned: set[str],
    layers: Mapping[str, int],
    groups: Sequence[Sequence[str]],
) -> tuple[list[_Joint], dict[str, list[_Joint]]]:
    """Return every joint, and for each edge its chain of joints from top to bottom."""
    member = {node: number for number, group in enumerate(groups) for node in group}
    nodes = {
        node: _Joint(layers[node], width, height, width - width // 2, node, member.get(node))
        for node, (width, height) in sizes.items()
    }
    for edge in edges:
        if edge.source == edge.target:
            nodes[edge.source].reach += LOOP + edge.width
    chains: dict[str, list[_Joint]] = {}
    crowd = dict.fromkeys(range(max(layers.values(), default=0)), 0)
    # Edges with the least choice first: the others find room where there is some.
    ways = [(edge, *_downwards(edge, turned)) for edge in edges if edge.source != edge.target]
    for edge, upper, lower in sorted(ways, key=lambda way: layers[way[2]] - layers[way[1]]):
        between = range(layers[upper] + 1, layers[lower])
        labelled = min((layer for layer in between if layer % 2), key=lambda layer: crowd[layer])
        chain = [nodes[upper]]
        for layer in between:
            is_line = layer != labelled
            width, height = (LINE_WIDTH, 0) if is_line else (edge.width, edge.height)
            crowd[layer] += width + GAP
            chain.append(_Joint(layer, width, height, width - width // 2, is_line=is_line))
        chain.append(nodes[lower])
        for one, other in pairwise(chain):
            lines = one.is_line + other.is_line
            link = _Link(one, other, edge.weight * (1, _BENT, _STRAIGHT)[lines])
            one.below.append(link)
            other.above.append(link)
        chains[edge.id] = chain
    inner = [joint for edge in edges for joint in chains.get(edge.id, ())[1:-1]]
    return [*nodes.values(), *inner], chains


def _ordered(joints: Sequence[_Joint]) -> list[list[_Joint]]:
    """Return the layers, each ordered so that few pieces of edges cross."""
    count = 1 + max((joint.layer for joint in joints), default=0)
    rows: list[list[_Joint]] = [[] for _ in range(count)]
    for joint in joints:
        rows[joint.layer].append(joint)
    for row in rows:
        _gather(row)
    best = [list(row) for row in rows]
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows if downwards else reversed(rows):
            position = {id(joint): place for line in rows for place, joint in enumerate(line)}
            row.sort(key=lambda joint: _median(joint, position, downwards=downwards))
            _gather(row)
        _swap_neighbours(rows)
        if _crossings(rows) < _crossings(best):
            best = [list(row) for row in rows]
    return best


def _median(joint: _Joint, position: Mapping[int, int], *, downwards: bool) -> int:
    around = (
        [link.upper for link in joint.above] if downwards else [link.lower for link in joint.below]
    )
    places = sorted(position[id(other)] for other in around)
    if not places:
        return 2 * position[id(joint)]
    return places[(len(places) - 1) // 2] + places[len(places) // 2]


def _gather(row: list[_Joint]) -> None:
    """Move the members of each group to where its first member stands."""
    for group in sorted({joint.group for joint in row if joint.group is not None}):
        members = [joint for joint in row if joint.group == group]
        first = row.index(members[0])
        rest = [joint for joint in row if joint.group != group]
        row[:] = [*rest[:first], *members, *rest[first:]]


def _swap_neighbours(rows: list[list[_Joint]]) -> None:
    """Swap neighbours for as long as that saves a crossing."""
    saved = True
    while saved:
        saved = False
        for layer, row in enumerate(rows):
            around = rows[max(0, layer - 1) : layer + 2]
            for place in range(len(row) - 1):
                before = _crossings(around)
                row[place : place + 2] = row[place + 1], row[place]
                if _is_gathered(row) and _crossings(around) < before:
                    saved = True
                else:
                    row[place : place + 2] = row[place + 1], row[place]


def _is_gathered(row: list[_Joint]) -> bool:
    gathered = list(row)
    _gather(gathered)
    return row == gathered


def _crossings(rows: Sequence[Sequence[_Joint]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {id(joint): number for number, joint in enumerate(lower)}
        ends = [sorted(place[id(link.lower)] for link in joint.below) for joint in upper]
        flat = [end for group in ends for end in group]
        total += sum(
            1 for first, end in enumerate(flat) for later in flat[first + 1 :] if later < end
        )
    return total


def _place(rows: Sequence[Sequence[_Joint]], chains: Iterable[Sequence[_Joint]]) -> None:
    """Draw every joint to its neighbours: first to their mean, then into straight lines."""
    for row in rows:
        offsets = _offsets(row)
        for joint, offset in zip(row, offsets, strict=True):
            joint.x = offset - offsets[-1] // 2
    for centre in (_mean, _weighted_median):
        for _ in range(SWEEPS):
            for row in (*rows, *reversed(rows)):
                _settle(row, centre)
    cost = _cost(rows) + 1
    while _cost(rows) < cost:
        cost = _cost(rows)
        _straighten(rows, chains)


def _offsets(row: Sequence[_Joint]) -> list[int]:
    """Return where the joints of a layer stand when they stand as close as they may."""
    return list(accumulate((one.room_before(other) for one, other in pairwise(row)), initial=0))


def _wishes(joint: _Joint) -> list[_Wish]:
    """Return where a joint would stand, each place with its weight."""
    upwards = [
        (link.upper.x + link.upper_port - link.lower_port, link.weight) for link in joint.above
    ]
    return upwards + [
        (link.lower.x + link.lower_port - link.upper_port, link.weight) for link in joint.below
    ]


def _mean(wishes: Sequence[_Wish]) -> int:
    return sum(x * weight for x, weight in wishes) // sum(weight for _, weight in wishes)


def _weighted_median(wishes: Sequence[_Wish]) -> int:
    half, passed = sum(weight for _, weight in wishes), 0
    for x, weight in sorted(wishes):
        passed += 2 * weight
        if passed >= half:
            return x
    return 0


def _settle(
    row: Sequence[_Joint],
    centre: Callable[[Sequence[_Wish]], int],
    pinned: Sequence[_Joint] = (),
) -> None:
    """Move the joints of one layer to where they would stand, in order and with room.

    Isotonic regression by pooling adjacent violators: joints that would overlap
    become one block, which goes where its members want it together.
    """
    offsets = _offsets(row)
    blocks: list[tuple[int, list[_Wish], int]] = []
    for joint, offset in zip(row, offsets, strict=True):
        wished = [(joint.x, _PINNED)] if joint in pinned else _wishes(joint) or [(joint.x, 1)]
        wishes = [(x - offset, weight) for x, weight in wished]
        size, x = 1, centre(wishes)
        while blocks and blocks[-1][0] > x:
            _, others, count = blocks.pop()
            wishes, size = others + wishes, size + count
            x = centre(wishes)
        blocks.append((x, wishes, size))
    places = [x for x, _, size in blocks for _ in range(size)]
    for joint, offset, x in zip(row, offsets, places, strict=True):
        joint.x = x + offset


def _straighten(rows: Sequence[Sequence[_Joint]], chains: Iterable[Sequence[_Joint]]) -> None:
    """Put the inner joints of each edge below one another wherever that makes all ways shorter.

    Joint by joint that would not come about: each is held where it is by the next.
    """
    for chain in chains:
        inner = chain[1:-1]
        first, last = _end_links(chain)
        ends = (first.upper.x + first.upper_port, last.lower.x + last.lower_port)
        for wanted in sorted({*ends, *(joint.x for joint in inner)}):
            if all(joint.x == wanted for joint in inner):
                continue
            before, cost = [[joint.x for joint in row] for row in rows], _cost(rows)
            for row in (*rows, *reversed(rows)):
                for joint in inner:
                    joint.x = wanted
                _settle(row, _weighted_median, pinned=inner)
            if _cost(rows) >= cost:
                for row, places in zip(rows, before, strict=True):
                    for joint, x in zip(row, places, strict=True):
                        joint.x = x


def _cost(rows: Sequence[Sequence[_Joint]]) -> int:
    """Return how far all edges together go sideways, each piece by its weight."""
    return sum(
        link.weight * abs(link.upper.x + link.upper_port - link.lower.x - link.lower_port)
        for row in rows
        for joint in row
        for link in joint.below
    )


def _end_links(chain: Sequence[_Joint]) -> tuple[_Link, _Link]:
    """Return the first and the last piece of an edge; its inner joints have no other links."""
    return chain[1].above[0], chain[-2].below[0]


def _assign_ports(rows: Sequence[Sequence[_Joint]]) -> None:
    """Spread the edges over the sides of their nodes, in the order of where they go."""
    position = {id(joint): place for row in rows for place, joint in enumerate(row)}
    for node in (joint for row in rows for joint in row if joint.node is not None):
        above = sorted(node.above, key=lambda link: position[id(link.upper)])
        below = sorted(node.below, key=lambda link: position[id(link.lower)])
        for link, port in zip(above, _spread(node, len(above)), strict=True):
            link.lower_port = port
        for link, port in zip(below, _spread(node, len(below)), strict=True):
            link.upper_port = port


def _spread(node: _Joint, count: int) -> list[int]:
    gap = min(PORT_GAP, (node.width - PORT_GAP) // max(1, count - 1))
    return [(2 * number - count + 1) * gap // 2 for number in range(count)]


def _layout(
    rows: Sequence[Sequence[_Joint]],
    edges: Sequence[Edge],
    turned: set[str],
    chains: Mapping[str, Sequence[_Joint]],
) -> Layout:
    joints = [joint for row in rows for joint in row]
    left = min((joint.x - joint.width // 2 for joint in joints), default=0) - MARGIN
    for joint in joints:
        joint.x -= left
    tops, heights = _levels(rows)
    nodes = {
        joint.node: Box(
            joint.x, tops[joint.layer] + heights[joint.layer] // 2, joint.width, joint.height
        )
        for joint in joints
        if joint.node is not None
    }
    routes = {}
    for edge in edges:
        if edge.source == edge.target:
            routes[edge.id] = _loop(nodes[edge.source], edge)
            continue
        chain = chains[edge.id]
        first, last = _end_links(chain)
        points = [(chain[0].x + first.upper_port, nodes[chain[0].node or ""].bottom)]
        for joint in chain[1:-1]:
            top = tops[joint.layer]
            points += [(joint.x, top), (joint.x, top + heights[joint.layer])]
            if not joint.is_line:
                label = Box(joint.x, top + heights[joint.layer] // 2, edge.width, edge.height)
        points.append((chain[-1].x + last.lower_port, nodes[chain[-1].node or ""].top))
        routes[edge.id] = Route(tuple(points[::-1] if edge.id in turned else points), label)
    width = max((joint.x + joint.reach for joint in joints), default=0) + MARGIN
    return Layout(width, tops[-1] + heights[-1] + MARGIN, nodes, routes)


def _levels(rows: Sequence[Sequence[_Joint]]) -> tuple[list[int], list[int]]:
    """Return the upper side and the height of each layer."""
    heights = [max((joint.height for joint in row), default=0) for row in rows]
    tops: list[int] = []
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        slant = max(
            (abs(link.lower.x - link.upper.x) for joint in row for link in joint.above), default=0
        )
        y += LAYER_GAP + slant // SLANT if tops else 0
        tops.append(y)
        y += height
    return tops, heights


def _loop(node: Box, edge: Edge) -> Route:
    label = Box(node.right + LOOP + edge.width // 2, node.y, edge.width, edge.height)
    points = ((node.right, node.y - PORT_GAP // 2), (node.right, node.y + PORT_GAP // 2))
    return Route(points, label)
