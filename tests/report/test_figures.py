"""The figures of the documentation, from a report whose figures are known."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "figures.py"
SVG = "{http://www.w3.org/2000/svg}"


def load():
    spec = importlib.util.spec_from_file_location("figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_files_of_their_own_and_say_what_the_report_says(report):
    module = load()
    trees = {name: ElementTree.fromstring(module.standalone(d)) for name, d in module.figures(report).items()}
    assert all(tree.tag == f"{SVG}svg" for tree in trees.values())
    assert all("--kept" in tree.find(f"{SVG}style").text for tree in trees.values())
    texts = {name: {"".join(t.itertext()) for t in tree.iter(f"{SVG}text")} for name, tree in trees.items()}
    assert texts["channels"] == {"conv1", "64 → 24"}  # what was not pruned is left out
    assert texts["noise"] == {"conv1 Conv", "35.2 dB", "layer1.0.conv1 Conv", "40.0 dB", "fc Gemm", "-"}
    assert texts["latency"] == {"dense fp32", "12.0 ms", "pruned fp32", "6.00 ms", "pruned int8", "3.00 ms"}


def test_bars_are_as_long_as_their_figures(report):
    def widths(name):
        tree = ElementTree.fromstring(load().figures(report)[name].replace(' href="', ' data="'))
        boxes = []
        for group in tree.iter("g"):
            if "patch_" in group.get("id", "") and (path := group.find("path")) is not None:
                x = [float(n) for n in path.get("d").replace("M", " ").replace("L", " ").replace("z", " ").split()[::2]]
                boxes.append(max(x) - min(x))
        return boxes

    dense, final = widths("channels")[-2:]
    assert abs(final / dense - 24 / 64) < 1e-3
    *_, slow, middle, fast = widths("latency")
    assert abs(middle / slow - 6 / 12) < 1e-3
    assert abs(fast / slow - 3 / 12) < 1e-3
