"""The roadmap at the top of the method's notebooks: a picture a stage, in nbs/roadmap/.

    python scripts/roadmap.py             # write the pictures again
    python scripts/roadmap.py --minutes   # how long each notebook takes: reading, exercises

Reading goes at 200 words and 20 lines of code a minute; tests and drawing code are skipped.
Exercises say their own minutes.
"""

import json
import re
import sys
from pathlib import Path

from pairuni_nb.testgen import notebooks

NBS = Path(__file__).parents[1] / "nbs"
STAGES = {  # stage -> the notebooks that tell it
    "records": "01, 04, 05",
    "pairs": "06 - 09",
    "model": "10, 16, 18",
    "rollouts": "11",
    "rewards": "12",
    "advantages": "02, 03",
    "step": "13, 14, 17, 19",
    "scores": "15",
}
WIDTH, GAP, TOP, HIGH = 84, 13, 8, 40  # of a box, in pixels
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="84" \
viewBox="0 0 {size} 84" font-family="Helvetica, Arial, sans-serif" text-anchor="middle">
<title>{title}</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="#666"/></marker></defs>
<rect width="{size}" height="84" rx="6" fill="white"/>
{body}
</svg>
"""


def left(i):
    "Where a stage's box begins."
    return 8 + i * (WIDTH + GAP)


def box(i, stage, lit):
    "A stage's box: dark where the reader is."
    fill, ink, faint = ("#222", "white", "#ddd") if lit else ("#f1f1f1", "#222", "#666")
    middle = left(i) + WIDTH / 2
    return (
        f'<rect x="{left(i)}" y="{TOP}" width="{WIDTH}" height="{HIGH}" rx="5" fill="{fill}" '
        f'stroke="#888"/>\n'
        f'<text x="{middle}" y="{TOP + 17}" font-size="13" fill="{ink}">{stage}</text>\n'
        f'<text x="{middle}" y="{TOP + 33}" font-size="11" fill="{faint}">{STAGES[stage]}</text>'
    )


def arrows():
    "From each stage to the next, and from the step back to the rollouts."
    names, y, low = list(STAGES), TOP + HIGH / 2, TOP + HIGH + 16
    for i in range(len(names) - 1):
        yield f'<path d="M{left(i) + WIDTH} {y}h{GAP - 1}" stroke="#666" marker-end="url(#tip)"/>'
    a, b = (left(names.index(name)) + WIDTH / 2 for name in ("step", "rollouts"))
    start = TOP + HIGH
    yield (
        f'<path d="M{a} {start}V{low}H{b}V{start + 2}" fill="none" stroke="#666" '
        'marker-end="url(#tip)"/>'
    )
    middle = (a + b) / 2
    yield f'<text x="{middle}" y="{low + 13}" font-size="11" fill="#666">again and again</text>'


def roadmap(current):
    "The picture with one stage lit; with none for the whole."
    boxes = [box(i, stage, stage == current) for i, stage in enumerate(STAGES)]
    where = f"you are at {current}" if current in STAGES else "the whole way"
    size = left(len(STAGES)) - GAP + 8
    title = f"From records to scores: {where}"
    return SVG.format(size=size, title=title, body="\n".join([*boxes, *arrows()]))


def minutes(path):
    "Reading and exercises of a notebook, in minutes."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    lessons = "\n".join(s for s in code if not re.search(r"^#\| (test|hide)", s, re.M))
    lines = [line for line in lessons.splitlines() if line.strip() and not line.startswith("#|")]
    exercises = re.findall(r"^\*\*[^*\n]+\*\* \((\d+) minutes?\)", prose, re.M)
    return round(len(prose.split()) / 200 + len(lines) / 20), sum(map(int, exercises))


def main():
    if "--minutes" in sys.argv:
        for name, path in notebooks(NBS).items():
            reading, exercises = minutes(path)
            print(f"{name:<32} {reading:>3} + {exercises:>2} = {reading + exercises:>3}")
        return
    (NBS / "roadmap").mkdir(exist_ok=True)
    for stage in ["all", *STAGES]:
        (NBS / "roadmap" / f"{stage}.svg").write_text(roadmap(stage), encoding="utf-8")


if __name__ == "__main__":
    main()
