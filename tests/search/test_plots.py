import itertools
import random
import xml.etree.ElementTree as ElementTree

import pytest

from sptune.errors import InputError
from sptune.search.plots import plot_search


def walk(layers, steps=20, warmup=5):
    """Gates that stand still and then wander."""
    noise = random.Random(layers)
    gates = [0.5] * layers
    history = []
    for step in range(1, steps + 1):
        if step > warmup:
            gates = [min(max(gate + noise.uniform(-0.05, 0.05), 0.0), 1.0) for gate in gates]
        history.append({"step": step, "gates": gates, "gate_loss": None if step <= warmup else 1.0})
    return history


def drawn_text(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize(("layers", "chosen"), [(1, [0]), (6, [3]), (24, [9, 14, 20]), (48, [1, 20, 30, 47])])
def test_every_size_of_backbone_shows_one_line_a_layer_and_names_the_chosen(layers, chosen):
    figure = plot_search(walk(layers), list(range(layers)), chosen, [0.5] * layers, "final gate")
    over_time, at_the_end = figure.axes
    assert len(over_time.lines) == layers
    assert len(at_the_end.patches) == layers
    assert {f"layer {layer}" for layer in chosen} <= set(drawn_text(figure))
    assert "weights only" in drawn_text(figure)
    assert at_the_end.get_title(loc="left").endswith(", ".join(map(str, chosen)))


def test_chosen_layers_stand_out():
    candidates = [2, 4, 6]
    lines = plot_search(walk(3), candidates, [4], [0.5] * 3, "final gate").axes[0].lines
    widths = {layer: line.get_linewidth() for layer, line in zip(candidates, lines, strict=True)}
    assert widths[4] > widths[2] == widths[6]


def test_names_do_not_overlap_when_gates_end_together():
    history = [{"step": 1, "gates": [0.5 + layer / 10000 for layer in range(12)], "gate_loss": 1.0}]
    figure = plot_search(history, list(range(12)), [3], [0.5] * 12, "final gate")
    figure.canvas.draw()
    names = [text for text in figure.axes[0].texts if text.get_text().startswith("layer")]
    spans = sorted((box.y0, box.y1) for box in (text.get_window_extent() for text in names))
    assert len(spans) == 12
    assert all(below[1] <= above[0] + 2 for below, above in itertools.pairwise(spans))


def test_svg_is_written_as_svg(tmp_path):
    path = tmp_path / "pictures" / "search.svg"
    plot_search(walk(6), list(range(6)), [3], [0.5] * 6, "final gate", path)
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match=r"gates\.txt.*\.png or \.svg"):
        plot_search(walk(2), [0, 1], [0], [0.5, 0.5], "final gate", tmp_path / "gates.txt")
    with pytest.raises(InputError, match="history of the search is empty"):
        plot_search([], [0, 1], [0], [0.5, 0.5], "final gate")


def test_losses_are_drawn_up_to_where_a_layer_was_dropped():
    losses = [[1.0, 1.5, 2.0]] * 4 + [[0.5, 0.75, None]] * 6
    history = [{"step": step, "losses": row} for step, row in enumerate(losses, start=1)]
    over_time, at_the_end = plot_search(history, [0, 1, 2], [0], [-0.5, -0.75, -2.0], "minus the loss").axes
    assert [len(line.get_xdata()) for line in over_time.lines] == [11, 11, 5]
    assert [line.get_ydata()[-1] for line in over_time.lines] == [0.5, 0.75, 2.0]
    assert at_the_end.collections[0].get_offsets()[:, 1].tolist() == [-0.5, -0.75, -2.0]


def test_held_out_losses_are_drawn_as_they_are():
    losses = [[1.0 + step % 2] for step in range(40)]
    history = [{"step": step, "losses": row} for step, row in enumerate(losses, start=1)]
    over_time = plot_search(history, [2], [2], [-1.0], "minus the loss").axes[0]
    assert list(over_time.lines[0].get_ydata())[1:] == [row[0] for row in losses]
    assert over_time.get_title(loc="left") == "Held-out loss by layer"


def test_only_the_first_steps_without_a_gate_loss_are_the_warmup():
    """With a gate_interval later steps have none, either."""
    history = walk(3, steps=20, warmup=6)
    for entry in history[6::2]:
        entry["gate_loss"] = None
    figure = plot_search(history, [0, 1, 2], [1], [0.5] * 3, "final gate")
    (band,) = figure.axes[0].patches
    assert (band.get_x(), band.get_width()) == (0, 7)


def test_one_loss_of_all_layers_is_one_line():
    history = [{"step": step, "loss": 2.0 / step} for step in range(1, 6)]
    over_time, at_the_end = plot_search(history, [0, 1], [1], [-0.5, -0.25], "minus the loss").axes
    assert [list(line.get_ydata()) for line in over_time.lines] == [[entry["loss"] for entry in history]]
    assert at_the_end.collections[0].get_offsets()[:, 1].tolist() == [-0.5, -0.25]
