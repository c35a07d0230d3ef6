"""Every exercise's check: the stub fails, the solution passes, three plausible wrong answers fail."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from pairuni_nb.testgen import module_name, notebooks, read_cells

ROOT = Path(__file__).parents[1]
NOTEBOOKS = notebooks(ROOT / "nbs")


class Exercise(NamedTuple):
    """What a page holds of one exercise."""

    page: str  # e.g. data/00_load.ipynb
    name: str  # of the function to write
    text: str  # what is asked
    stub: str
    check: str  # the cell below the stub; ends in grade(..)
    answer: str  # hints and solution


def exercises_of(page):
    """The exercises of a notebook: cells marked `#| exercise name`, and those around them."""
    cells = nbformat.read(NOTEBOOKS[page], as_version=4).cells
    for i, cell in enumerate(cells):
        marked = re.match(r"#\| exercise (\w+)\n", cell.source)
        if cell.cell_type == "code" and marked:
            answer = next(c.source for c in cells[i + 2 :] if c.cell_type == "markdown")
            yield Exercise(
                page, marked[1], cells[i - 1].source, cell.source, cells[i + 1].source, answer
            )


EXERCISES = {(page, e.name): e for page in NOTEBOOKS for e in exercises_of(page)}


def solution(exercise):
    """The code of the folded solution."""
    return re.search(r"<summary>Solution</summary>\n\n```python\n(.*?)```", exercise.answer, re.S)[
        1
    ]


def imports(source):
    """The import statements of a cell."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic
        return ""
    return "\n".join(
        ast.unparse(s) for s in statements if isinstance(s, (ast.Import, ast.ImportFrom))
    )


@cache
def names(page):
    """What a page's exercise may use: the page's module, and whatever the page imports."""
    cells = read_cells(NOTEBOOKS[page])
    module = module_name(cells)
    found = dict(vars(importlib.import_module(f"pairuni_nb.{module}"))) if module else {}
    for cell in cells:
        exec(imports(cell.source), found)
    return found


def checked(exercise, *codes):
    """What the check says of the stub, followed by some code."""
    space = dict(names(exercise.page))
    for code in (exercise.stub, *codes):
        exec(code, space)
    *before, last = ast.parse(exercise.check).body
    exec(compile(ast.Module(before, []), exercise.page, "exec"), space)
    return eval(compile(ast.Expression(last.value), exercise.page, "eval"), space)


# (page, function) -> wrong answers: what stands in the solution, and what instead of it
WRONG = {
    ("01_world.ipynb", "overlap"): [
        ("len(stated | shown)", "len(stated)"),  # recall: show everything
        ("len(stated | shown)", "len(shown)"),  # precision: show little
        (" / len(stated | shown)", ""),  # a count
        ("len(stated & shown)", "2 * len(stated & shown)"),
    ],
    ("01_world.ipynb", "near_score"): [
        ("max(rows, columns)", "abs(i - right)"),  # neighbours in the list
        ("max(rows, columns)", "rows + columns"),  # no corners
        ("cell == stated[right]", "cell and cell[1] == stated[right][1]"),  # colours only
        ("cell == stated[right]", "cell and cell[0] == stated[right][0]"),  # shapes only
        ("1: 0.5", "1: 0.5, 2: 0.5"),
        (
            "        if cell == stated[right]:\n",
            "        if cell and (i != right or cell == stated[i]):\n",
        ),  # a neighbour may be anything
    ],
    ("02_pair_grpo.ipynb", "my_advantage"): [
        ("rewards.nanmean(-1, keepdim=True)", "rewards.nanmean()"),  # the batch's mean
        ("(n - 1).clamp(min=1)", "n"),  # ddof 0
        ("there = ~", "rewards = rewards.nan_to_num(0)\n    there = ~"),  # missing is wrong
        (
            "(centred.square().nansum(-1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()",
            "rewards.nan_to_num(0).std(-1, keepdim=True)",
        ),  # missing is left out of the mean, and a zero in the spread
        (".nan_to_num(0)", ""),
        (" / (std + 1e-4)", ""),  # no spread
    ],
    ("02_pair_grpo.ipynb", "my_weight"): [
        ("similarity.sqrt()", "similarity"),
        ("torch.where(aligned, 1.0, similarity.sqrt())", "similarity.sqrt()"),
        ("torch.where(aligned, 1.0, similarity.sqrt())", "torch.ones_like(similarity)"),
        ("(aligned, 1.0, similarity.sqrt())", "(aligned, similarity.sqrt(), 1.0)"),
    ],
    ("02_pair_grpo.ipynb", "my_modulate"): [
        ("weights[:, None]", "weights"),  # along the wrong axis
        ("weights[:, None]", "weights.mean()"),
        ("weights[:, None]", "weights[:, None].sqrt()"),  # the root is in the weight already
    ],
    ("02_pair_grpo.ipynb", "my_loss"): [
        ("-torch.min", "torch.min"),  # uphill
        (
            "torch.min(ratio * A, ratio.clamp(1 - clip_eps, 1 + clip_eps) * A)",
            "ratio * A",
        ),  # no clip
        (
            "torch.min(ratio * A, ratio.clamp(1 - clip_eps, 1 + clip_eps) * A)",
            "ratio.clamp(1 - clip_eps, 1 + clip_eps) * A",
        ),
        ("torch.min", "torch.max"),
        (
            "((token_loss * mask).sum(1) / mask.sum(1)).mean()",
            "(token_loss * mask).sum() / mask.sum()",
        ),
        ("(token_loss * mask).sum(1) / mask.sum(1)", "token_loss.mean(1)"),  # no mask
        ("(logp - old_logp).exp()", "logp.exp() / logp.exp().detach()"),  # old is forgotten
    ],
    ("02_pair_grpo.ipynb", "softmax_weight"): [
        ("len(s) * ", ""),  # adds up to 1
        ("len(s)", "3"),  # a constant that was the answer
        ("s / tau", "s * tau"),
        ("(s / tau).softmax(-1)", "s / s.sum()"),
    ],
    ("02_pair_grpo.ipynb", "enough_rollouts"): [
        ("** 0.5 - 1", "- 1"),  # variances
        ("k / (k - 1)", "(k + 1) / k"),
        ("def enough_rollouts(share):", "def enough_rollouts(share):\n    return 4\n"),
    ],
    ("05_completion.ipynb", "no_false_claims"): [
        ("claimed <= ", "claimed == "),  # full marks
        ("claimed <= ", "claimed >= "),
        ("        return False\n", "        return True\n"),  # no caption claims nothing
        ("scene.style, scene.cells)", "'plain', scene.cells)"),  # the style is not looked at
    ],
    ("06_encoders.ipynb", "pieces"): [
        ('f" {word} "', "word"),  # no spaces
        ("range(len(framed) - 2)", "range(0, len(framed) - 2, 3)"),  # one after the other
        ("i + 3", "i + 2"),
        ("range(len(framed) - 2)", "range(len(framed))"),
    ],
    ("07_similarity.ipynb", "threshold_of"): [
        ("(S > s)", "(S >= s)"),
        ("<= share", "< share"),
        ("min(", "max("),
        ("(S > s)", "(S < s)"),
        ("min(s for s in np.unique(S) if (S > s).mean() <= share)", "np.quantile(S, 1 - share)"),
    ],
    ("07_similarity.ipynb", "joined"): [
        ("(1 - t) ** 0.5 * image, t**0.5 * text", "(1 - t) * image, t * text"),  # counts twice
        ("(1 - t) ** 0.5 * image, t**0.5 * text", "image, text"),
        ("(1 - t) ** 0.5 * image, t**0.5 * text", "t**0.5 * image, (1 - t) ** 0.5 * text"),
        ("], 1)", "], 1) / 2**0.5"),
    ],
    ("08_search.ipynb", "best_columns"): [
        ("-S", "S"),  # the worst
        (', kind="stable")[:, :k]', ")[:, ::-1][:, :k]"),
        (
            'np.argsort(-S, axis=1, kind="stable")[:, :k]',
            'np.argsort(S, axis=1, kind="stable")[:, ::-1][:, :k]',
        ),
        (
            'np.argsort(-S, axis=1, kind="stable")[:, :k]',
            'np.sort(np.argsort(-S, axis=1, kind="stable")[:, :k], 1)',
        ),
        (
            'np.argsort(-S, axis=1, kind="stable")[:, :k]',
            "np.tile(np.arange(k), (len(S), 1))",
        ),  # first k
    ],
    ("08_search.ipynb", "second_looks"): [
        ("2 * eps", "eps"),
        ("lost_a + lost_b.max()", "lost_a"),
        ("[:, -10]", "[:, -1]"),  # sure of the best alone
        ("low_a @ low_b.T", "a @ b.T"),
        ("sum(1).mean()", "sum(1).max()"),
    ],
    ("09_pairing.ipynb", "medoid"): [
        ("argmax", "argmin"),
        ("(members @ centroid)", "(members @ members[0])"),
        ("(members @ centroid)", "members.sum(1)"),
        (
            "(members @ centroid).argmax()",
            "len(members) - 1 - (members @ centroid)[::-1].argmax()",
        ),  # the last of equals
    ],
    ("09_pairing.ipynb", "take_turns"): [
        ("u not in used and row[u] > delta", "row[u] > delta"),  # a U image serves twice
        ("row[u] > delta", "row[u] >= delta"),
        (
            "if u not in used and row[u] > delta]",
            "if row[u] > delta][:1]\n        free = [u for u in free if u not in used]",
        ),  # only its best
        ('np.argsort(-row, kind="stable")', "range(len(row))"),  # the first free one
        ("enumerate(S)", "sorted(enumerate(S), key=lambda pair: -pair[1].max())"),  # best first
    ],
    ("09_pairing.ipynb", "by_quarter"): [
        ("4 * g // n_g", "min(g // (n_g // 4), 3)"),
        (
            "for g, _, s_p in found:",
            "for i, (g, _, s_p) in enumerate(found):\n        g, n_g = i, len(found)",
        ),  # of the pairs
        ("float(np.mean(q))", "float(np.sum(q))"),
        ("for g, _, s_p", "for _, g, s_p"),  # U's index
    ],
    ("10_janus.ipynb", "keep_top"): [
        (
            "empty[12:].expand(len(tokens), -1)",
            "torch.zeros(len(tokens), 24).long()",
        ),  # empty is not read
        ("tokens[:, :12], empty[12:]", "tokens[:, :6], empty[6:]"),
        (
            "[tokens[:, :12], empty[12:].expand(len(tokens), -1)]",
            "[empty[:24].expand(len(tokens), -1), tokens[:, 24:]]",
        ),  # the bottom
        ("empty[12:]", "empty[:24]"),
    ],
    ("11_rollout.ipynb", "my_draw"): [
        ("<= u", "< u"),
        ("(probs.cumsum(-1) <= u[:, None]).sum(-1)", "probs.argmax(-1)"),  # greedy
        ("(probs.cumsum(-1) <= u[:, None]).sum(-1)", "(u * probs.shape[1]).long()"),  # uniform
        ("<= u[:, None]", "<= 1 - u[:, None]"),
    ],
    ("11_rollout.ipynb", "my_guide"): [
        ("return uncond +", "return cond +"),
        ("(cond - uncond)", "(uncond - cond)"),
        ("uncond + w * (cond - uncond)", "w * cond + (1 - w) * uncond if w <= 1 else w * cond"),
        ("uncond + w * (cond - uncond)", "cond - w * uncond"),
    ],
    ("11_rollout.ipynb", "my_score"): [
        (" / temperature", ""),
        (" / temperature", " * temperature"),
        ("log_softmax", "softmax"),
        (" * mask", ""),
        ("(logits / temperature).log_softmax(-1)", "logits.log_softmax(-1) / temperature"),
    ],
    ("11_rollout.ipynb", "draw_gumbel"): [
        (
            "-(-u.clamp(1e-7, 1 - 1e-7).log()).log()",
            "torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))",
        ),  # Gaussian
        (
            "-(-u.clamp(1e-7, 1 - 1e-7).log()).log()",
            "-u.clamp(1e-7, 1 - 1e-7).log()",
        ),  # one logarithm
        ("logits + gumbel", "logits"),
        ("logits + gumbel", "logits + gumbel[:, :1]"),  # one number a row
        ("logits + gumbel", "logits - gumbel"),
    ],
    ("11_rollout.ipynb", "kept"): [
        (".topk(k).values", "[..., :k]"),  # the first k
        (".topk(k).values", ".topk(k, largest=False).values"),
        ("logits.softmax(-1).topk(k).values", "logits.topk(k).values.softmax(-1)"),  # always 1
        (".mean()", "[0, 0]"),
    ],
    ("12_rewards.ipynb", "matches"): [
        (
            "    letter = said",
            "    if answer in said:\n        return True\n    letter = said",
        ),  # hedging
        ('\n    said = said.strip().rstrip(".").lower()', ""),
        ("0 <= i < len(choices)", "i < len(choices)"),
        ("0 <= i < len(choices) and choices[i] == answer", "False"),  # words only
        ("[choice.lower() for choice in choices]", "choices"),  # capitals only in `said`
        (
            "    if len(letter) != 1:\n        return False\n",
            '    letter = letter[:1] or "?"\n',
        ),  # its first letter
        (
            "    if said in [choice.lower() for choice in choices]:\n        return said == answer.lower()\n",
            "    if len(said) > 1 and said == answer.lower():\n        return True\n",
        ),  # letters first
        ("0 <= i < len(choices) and", "0 <= i and"),
        (
            'letter = said.strip("()")',
            'letter = said[1:-1] if said[:1] == "(" else ""',
        ),  # bare: none
        (
            'letter = said.strip("()")',
            'letter = said if said[:1] != "(" else ""',
        ),  # in brackets: none
        (
            "    if said in [choice.lower() for choice in choices]:\n        return said == answer.lower()\n",
            "    if said == answer.lower():\n        return True\n",
        ),  # another choice's word read as a letter
    ],
    ("12_rewards.ipynb", "format_bonus"): [
        ("well_formed(text)", '("<answer>" in text)'),  # half the form
        ("max(r, 0.1 * well_formed(text))", "r + 0.1 * well_formed(text)"),
        ("max(r, 0.1 * well_formed(text))", "max(r, 0.1)"),
        ("None if r is None else max", "0.0 if r is None else max"),  # missing is wrong
        ("max(r, 0.1 * well_formed(text))", "r"),
    ],
    ("14_step.ipynb", "step_by_hand"): [
        ("theta - lr", "theta + lr"),
        ("modulate(group_advantage(rewards), weights)", "group_advantage(rewards)"),
        (
            "modulate(group_advantage(rewards), weights)",
            "group_advantage(modulate(rewards, weights))",
        ),  # divided out
        (
            "modulate(group_advantage(rewards), weights)",
            "modulate(rewards - rewards.mean(), weights)",
        ),
        ("lr * gradient", "gradient"),
        ("(theta - lr", "(-lr"),  # where it started is forgotten
    ],
    ("14_step.ipynb", "cosine"): [
        ("(dot(a, a) * dot(b, b)) ** 0.5", "dot(a, a)"),
        ("return float(", "return abs("),
        (
            "return sum((x[n] * y[n]).sum() for n in x)",
            "return (x['w'] * y['w']).sum()",
        ),  # one name
        ("(dot(a, a) * dot(b, b)) ** 0.5", "(dot(a, a) * dot(b, b))"),
    ],
    ("15_evaluate.ipynb", "paired_ci"): [
        ("x - y", "y - x"),
        (
            "mean_ci([x - y for x, y in zip(a, b)])",
            "(np.mean(a) - np.mean(b), (mean_ci(a)[1] ** 2 + mean_ci(b)[1] ** 2) ** 0.5)",
        ),
        ("mean_ci([x - y for x, y in zip(a, b)])", "mean_ci([abs(x - y) for x, y in zip(a, b)])"),
        ("mean_ci([x - y for x, y in zip(a, b)])", "mean_ci([x - y for x in a for y in b])"),
    ],
    ("16_emu3.ipynb", "shrinks_to"): [
        ("(width + 1)", "width"),  # no ends of rows
        (" + 3", ""),  # no closing tokens
        (" + 3", " + 1"),
        ("return height * width", "return 1 - height * width"),  # the share that is forced
    ],
    ("18_diffusion.ipynb", "shown_at"): [
        ("step < t", "step <= t"),  # sees what it is to reveal
        ("step < t", "step != t"),  # and what comes later
        ("step < t", "step == t - 1"),  # forgets
        ("step < t", "torch.arange(len(step)) < t"),  # left to right
    ],
    ("data/00_load.ipynb", "quiz_fields"): [
        ("< 3", "<= 3"),
        ('options[row["label"]]', 'row["label"]'),  # a place, no text
        ('    if len(options) < 3:\n        return "too easy"\n', ""),
        ('image=row["photo"], ', ""),
        ('options[row["label"]]', "options[-1]"),
    ],
    ("data/01_paper_data.ipynb", "as_choice"): [
        ('plain_words(record["answer"])', 'record["answer"]'),
        ('record["matcher"] != "text" or ', ""),
        ('answer not in ("yes", "no")', 'not answer.startswith(("yes", "no"))'),
        ("answer=answer, ", ""),
        (', matcher="choice"', ""),
    ],
    ("data/02_language_model.ipynb", "predict"): [
        ("** (rewrites + 1)", "** rewrites"),
        (
            "1 - (1 - true - false) ** (rewrites + 1), true / (true + false)",
            "true + false, true / (true + false)",
        ),
        ("true / (true + false)", "true"),
        ("miss + (1 - miss) * (1 - alarm)", "1 - alarm"),  # a miss accepts true ones, too
        ("lies * miss", "lies * (1 - miss)"),
    ],
    ("data/04_preference.ipynb", "fair_weights"): [
        (".std(1).mean()", ".std()"),  # between groups, too
        ("1 / matrix.std(1).mean().item()", "matrix.std(1).mean().item()"),
        (".std(1).mean()", ".mean()"),
        (".std(1).mean()", ".std(1).max()"),
        (".std(1)", ".std(0)"),
        (".std(1)", ".std(1, correction=0)"),  # the exercise says ddof 1
    ],
    ("learn/00_one_pair.ipynb", "better_than_others"): [
        (" / (rewards.std() + 1e-4)", ""),
        (" + 1e-4", ""),  # NaN where all are equal
        ("rewards - rewards.mean()", "rewards"),
        ("rewards - rewards.mean()", "rewards - rewards.median()"),
        ("rewards.std()", "rewards.std(correction=0)"),
    ],
    ("learn/01_primer.ipynb", "estimate_gradient"): [
        (" - rewards.mean()", ""),
        (".mean(0)", ".sum(0)"),
        ("rewards - rewards.mean()", "rewards.mean() - rewards"),
        ("rewards - rewards.mean()", "(rewards - rewards.mean()) / rewards.std()"),
    ],
    ("learn/04_curves.ipynb", "verdict"): [
        ("(before[1] ** 2 + after[1] ** 2) ** 0.5", "before[1] + after[1]"),  # must not touch
        ("(before[1] ** 2 + after[1] ** 2) ** 0.5", "max(before[1], after[1])"),
        ("abs(change) <= h", "change <= h"),  # no fall is clear
        ("1 if change > 0 else -1", "1"),
        ("before[0] is None or after[0] is None", "False"),
        (
            "before[0] is None or after[0] is None",
            "not before[0] or not after[0]",
        ),  # a score of 0 is no missing one
    ],
    ("learn/04_curves.ipynb", "alarm"): [
        ("else 0\n", "else bad\n"),  # in all, not in a row
        (" and r < 0.2", ""),  # solved prompts ring it
        ("f > 0.8 and ", ""),
        ("f > 0.8 and r < 0.2", "f > 0.2 and r < 0.8"),  # the bounds of each other
        ("f > 0.8 and r < 0.2", "f > 0.8 and r < 0.5"),
        ("f > 0.8 and r < 0.2", "f > 0.5 and r < 0.2"),
        ("bad == n", "bad > n"),
        ("return step", "return step - n + 1"),  # where it began
        (
            "bad == n",
            "sum(flat[:step][-n:]) > 0.8 * n and sum(reward[:step][-n:]) < 0.2 * n",
        ),  # means over n steps
    ],
    ("learn/01_primer.ipynb", "k3"): [
        ("ref_logp - logp", "logp - ref_logp"),
        ("d.exp() - d - 1", "-d"),  # k1: negative at times
        ("d.exp() - d - 1", "0.5 * d**2"),  # k2: biased
        ("d.exp() - d - 1", "d.exp() - 1"),
    ],
    ("learn/03_labs.ipynb", "adam_walk"): [
        ("v / (1 - beta2**t)", "v"),  # the means begin at 0
        ("(1 - beta2) * g**2", "(1 - beta2) * abs(g)"),
        (" ** 0.5 + eps", " + eps"),
        ("theta - lr", "theta + lr"),
        ("m = beta1 * m + (1 - beta1) * g", "m = (1 - beta1**t) * g"),  # no momentum
        (
            "theta - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)",
            "theta - lr * g",
        ),
    ],
    ("learn/03_labs.ipynb", "diagnoses"): [
        ('A="weight", B="temperature"', 'A="temperature", B="weight"'),
        ('H="end"', 'H="padding"'),
        ('A="weight", ', ""),
        ('F="batch"', 'F="batch, centre"'),
    ],
    ("learn/06_name_the_run.ipynb", "names_of_runs"): [
        ('C="healthy", D="first choice"', 'C="first choice", D="healthy"'),
        ('E="random rewards"', 'E="short leash"'),
        ('A="rate too high", ', ""),
        ('A="rate too high"', 'A="uphill"'),
    ],
    ("learn/05_labs.ipynb", "guided_entropy"): [
        ("uncond + w * (cond - uncond)", "cond + w * (cond - uncond)"),
        ("uncond + w * (cond - uncond)", "cond"),  # not guided
        ("uncond + w * (cond - uncond)", "w * cond"),
        ("-(logp.exp() * logp)", "-logp"),  # of every code, likely or not
        (".sum(-1).mean()", ".mean()"),
        (".sum(-1).mean()", ".sum()"),  # of all codes together
        (".mean().item()", ".mean().item() / 0.6931"),  # bits
    ],
    ("learn/05_labs.ipynb", "transplant"): [
        ("r, c = divmod(cell, 3)", "c, r = divmod(cell, 3)"),
        ("2 * r + 2", "2 * r + 1"),
        ("slice(2 * r, 2 * r + 2), slice(2 * c, 2 * c + 2)", "slice(r, r + 2), slice(c, c + 2)"),
        (
            "    whole[square] = donor.view(6, 6)[square]\n    return whole.flatten()",
            "    whole = whole.flatten()\n    whole[4 * cell : 4 * cell + 4] = donor[4 * cell : 4 * cell + 4]\n    return whole",
        ),  # four in a row
        ("donor.view(6, 6)[square]", "donor.view(6, 6)[:2, :2]"),  # always the same four
        ("codes.clone().view", "codes.view"),  # a view of the drawing
        ("    return whole.flatten()", "    return whole"),  # a square, not a row
    ],
    ("learn/05_labs.ipynb", "paid"): [
        ("(stated | shown).total()", "stated.total()"),  # paint more
        (" / (stated | shown).total()", " - 0.1 * shown.total()"),  # above 1
        ("(stated | shown).total()", "max(shown.total(), 1)"),  # paint less
        (
            "(stated & shown).total() / (stated | shown).total()",
            "float(stated == shown)",
        ),  # all or nothing
        (
            "(stated & shown).total() / (stated | shown).total()",
            "len(stated.keys() & shown.keys()) / len(stated.keys() | shown.keys())",
        ),  # kinds, not numbers
        (
            "(stated & shown).total() / (stated | shown).total()",
            "1 - abs(stated.total() - shown.total()) / 9",
        ),  # numbers, not kinds
        (
            "    return",
            "    stated, shown = (Counter(s for s, _ in c.elements()) for c in (stated, shown))\n    return",
        ),  # shapes, not colours
    ],
    ("run/03_report.ipynb", "slope"): [
        (
            "float((x * y).sum() / (x * x).sum())",
            "(values[-1] - values[0]) / (steps[-1] - steps[0])",
        ),
        (
            "float((x * y).sum() / (x * x).sum())",
            "float(np.mean(np.diff(values) / np.diff(steps)))",
        ),
        ("(x * x).sum()", "(y * y).sum()"),  # steps a point
        (
            "np.array(steps) - np.mean(steps)",
            "np.arange(len(steps)) - np.mean(np.arange(len(steps)))",
        ),
    ],
    ("run/04_plan.ipynb", "naive_logits_gb"): [
        ("(t.prompt + t.new)", "t.new"),
        ("1e9", "2**30"),
        ("t.vocab", "102_400"),  # the drawings' too
        ("* 4 /", "* 2 /"),
    ],
    ("run/04_plan.ipynb", "rows_that_weigh_as_much"): [
        (" + head", ""),
        ("4 * parameters", "2 * parameters"),
        (" * context", ""),
        ("2 * matrices", "4 * matrices"),
    ],
    ("run/05_janus_pro.ipynb", "image_tokens_a_step"): [
        (" * (1 + guided)", ""),
        ("(1 + guided)", "2"),
        ("P * K * N", "K * N"),
        ("(1 + guided)", "(1 + 5 * guided)"),  # the guidance's weight
    ],
    ("run/06_benchmark.ipynb", "incomplete"): [
        (" if is_whole(p)", ""),
        ('not (sub / "metadata.jsonl").is_file() or ', ""),
        (" if p.is_dir() and p.name.isdigit()", ""),
        ("< n", "<= n"),
        ("< n", "!= n"),
    ],
    ("run/09_cli.ipynb", "Count"): [
        ("tyro.conf.Positional[str]", "str"),  # an option
        ("folder:", "path:"),
        ("tyro.conf.Positional[str]", "tyro.conf.Positional[str] = '.'"),
        ("tyro.conf.Positional[str]", "tyro.conf.Positional[list[str]]"),
    ],
    ("run/07_ablate.ipynb", "seeds_needed"): [
        ("n - 1", "10**6"),  # the normal's quantiles
        ("[0.975, 0.8]", "[0.975]"),  # no power: half of such effects would be missed
        ("[0.975, 0.8]", "[0.95, 0.8]"),  # one-sided
        ("n**0.5", "n"),
    ],
    ("run/10_evidence.ipynb", "two_seed_interval"): [
        ("abs(a - b)", "(a - b)"),
        ("student.ppf(0.975, 1)", "1.96"),
        ("student.ppf(0.975, 1)", "student.ppf(0.95, 1)"),
        (" / 2", " / 2**0.5"),  # the spread, not of the mean
        ("student.ppf(0.975, 1)", "student.ppf(0.975, 2)"),
    ],
    ("run/11_testgen.ipynb", "count_tests"): [
        ("sum(is_test(node) for node in ast.parse(source).body)", "source.count('def test_')"),
        ("ast.parse(source).body", "ast.walk(ast.parse(source))"),
        ("sum(is_test(node) for node in ast.parse(source).body)", "len(ast.parse(source).body)"),
        ("is_test(node)", "isinstance(node, ast.FunctionDef) and is_test(node)"),
    ],
}

each = pytest.mark.parametrize("key", EXERCISES, ids=" ".join)


@each
def test_an_exercise_has_minutes_two_hints_and_a_folded_solution(key):
    exercise = EXERCISES[key]
    assert re.search(r"^\*\*[^*\n]+\*\* \(\d+ minutes\)\. ", exercise.text, re.M)
    folds = re.findall(r"<details><summary>([^<]+)</summary>", exercise.answer)
    assert folds[:3] == ["Hint 1", "Hint 2", "Solution"]


@each
def test_the_stub_fails_and_says_so_beside_what_is_expected(key):
    said = checked(EXERCISES[key])
    assert not said and "expected" in repr(said), said


@each
def test_the_solution_passes(key):
    said = checked(EXERCISES[key], solution(EXERCISES[key]))
    assert said and "all right" in repr(said), said


@each
def test_three_plausible_wrong_answers_fail_by_what_they_return(key):
    exercise, right, by_value = EXERCISES[key], solution(EXERCISES[key]), 0
    for old, new in WRONG[key]:
        assert right.count(old) == 1, f"the solution does not hold {old!r} once"
        wrong = right.replace(old, new)
        said = checked(exercise, wrong)
        assert not said, f"accepted:\n{wrong}"
        faults = [fault for *_, fault in said.cases if fault]
        by_value += any(not fault.startswith("your code stops") for fault in faults)
    assert by_value >= 3


# other right answers: the library's own functions, and other ways to the same numbers
RIGHT = {
    ("02_pair_grpo.ipynb", "my_advantage"): "my_advantage = group_advantage",
    ("02_pair_grpo.ipynb", "my_weight"): "my_weight = pair_weight",
    ("02_pair_grpo.ipynb", "my_modulate"): "my_modulate = modulate",
    ("02_pair_grpo.ipynb", "my_loss"): "my_loss = lambda *inputs: policy_loss(*inputs)[0]",
    ("07_similarity.ipynb", "joined"): (
        "joined = lambda i, t, w: np.hstack([np.sqrt(w) * t, np.sqrt(1 - w) * i])"
    ),
    ("08_search.ipynb", "best_columns"): (
        "best_columns = lambda S, k: [sorted(range(len(r)), key=lambda j: -r[j])[:k] for r in S]"
    ),
    ("09_pairing.ipynb", "medoid"): (
        "medoid = lambda m, c: nearest_members(m, np.zeros(len(m), int), c[None])[0]"
    ),
    ("09_pairing.ipynb", "take_turns"): """
def take_turns(S, delta):
    g, u = np.nonzero(S > delta)
    turns = np.lexsort((u, -S[g, u], g))
    g, u = g[turns], u[turns]
    return [(g[i], u[i], S[g[i], u[i]]) for i in choose(g, u, S[g, u])]
""",
    ("11_rollout.ipynb", "my_draw"): "my_draw = draw",
    ("11_rollout.ipynb", "my_guide"): (
        "my_guide = lambda c, u, w: guide(torch.cat([c, u]), len(c), w)"
    ),
    ("12_rewards.ipynb", "matches"): """
def matches(said, choices, answer):
    return is_right(said, dict(choices=choices, answer=answer, matcher="choice"))
""",
    ("14_step.ipynb", "step_by_hand"): """
def step_by_hand(theta, tokens, rewards, weights, lr):
    A = weights[:, None] * group_advantage(rewards)
    pull = A.flatten()[:, None] * (torch.eye(4)[tokens.flatten()] - theta.softmax(0))
    return theta + lr * pull.mean(0)
""",
    ("learn/00_one_pair.ipynb", "better_than_others"): (
        "better_than_others = lambda r: group_advantage(r[None])[0]"
    ),
    ("learn/03_labs.ipynb", "adam_walk"): """
def adam_walk(gradients, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8):
    x = torch.zeros(1, requires_grad=True)
    opt = torch.optim.Adam([x], lr=lr, betas=(beta1, beta2), eps=eps)
    for g in gradients:
        x.grad = torch.tensor([g])
        opt.step()
    return x.item()
""",
    ("learn/05_labs.ipynb", "guided_entropy"): """
def guided_entropy(cond, uncond, w):
    return torch.distributions.Categorical(logits=w * cond + (1 - w) * uncond).entropy().mean()
""",
    ("learn/05_labs.ipynb", "transplant"): """
def transplant(codes, donor, cell):
    corner = 12 * (cell // 3) + 2 * (cell % 3)
    at = [corner, corner + 1, corner + 6, corner + 7]
    return torch.tensor([donor[i] if i in at else codes[i] for i in range(36)])
""",
    ("learn/05_labs.ipynb", "paid"): """
def paid(stated, shown):
    fine = (shown - stated).total() + (stated - shown).total()
    return 1 / (1 + fine)
""",
    ("learn/01_primer.ipynb", "estimate_gradient"): """
def estimate_gradient(pi, arms, rewards):
    return (rewards - rewards.mean()) @ torch.eye(len(pi))[arms] / len(arms)
""",
}


@pytest.mark.parametrize("key", RIGHT, ids=" ".join)
def test_another_right_answer_passes(key):
    said = checked(EXERCISES[key], RIGHT[key])
    assert said, said


def test_every_wrong_answer_belongs_to_an_exercise():
    assert WRONG.keys() == EXERCISES.keys()


def test_no_page_checks_in_another_way():
    for page, path in NOTEBOOKS.items():
        cells = nbformat.read(path, as_version=4).cells
        marked = sum(c.source.startswith("#| exercise ") for c in cells)
        solutions = sum(c.source.count("<summary>Solution</summary>") for c in cells)
        assert marked == solutions, page
