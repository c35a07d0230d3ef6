// Two pairs whose tasks share four logits: what pair_grpo and torch.optim compute, without either.
// x.rewards[pair][task][k]: task 0 is U, task 1 is G; rollout k took action k.

const K = 4;
const sum = (values) => values.reduce((a, b) => a + b, 0);

export function groupAdvantage(rewards) {  // pair_grpo.group_advantage, for one group
  if (Math.max(...rewards) === Math.min(...rewards)) return rewards.map(() => 0);
  const mean = sum(rewards) / K;
  const std = Math.sqrt(sum(rewards.map((r) => (r - mean) ** 2)) / (K - 1));
  return rewards.map((r) => (r - mean) / (std + 1e-4));
}

export function pairWeight(similarity, aligned, weighting) {  // pair_grpo.pair_weight
  if (aligned) return 1;
  const s = similarity;
  return { sqrt: Math.sqrt(s), linear: s, none: 1, square: s * s }[weighting];
}

function softmax(theta) {
  const top = Math.max(...theta);
  const odds = theta.map((t) => Math.exp(t - top));
  return odds.map((o) => o / sum(odds));
}

// Of policy_loss at ratio 1, the mean over the rows of a task: pairs x K.
function gradient(groups, theta, pairs) {
  const pi = softmax(theta);
  return theta.map((_, j) => -sum(groups.map((A) => A[j] - pi[j] * sum(A))) / (pairs * K));
}

function climb(groups, pairs, x) {  // the policy after some steps of SGD or Adam
  let theta = Array(K).fill(0);
  const m = Array(K).fill(0), v = Array(K).fill(0);
  for (let step = 1; step <= x.steps; step++) {
    const g = gradient(groups, theta, pairs);
    theta = theta.map((t, j) => {
      if (x.optimiser === "SGD") return t - x.lr * g[j];
      m[j] = 0.9 * m[j] + 0.1 * g[j];
      v[j] = 0.99 * v[j] + 0.01 * g[j] ** 2;
      const scale = Math.sqrt(v[j]) / Math.sqrt(1 - 0.99 ** step) + 1e-8;
      return t - (x.lr / (1 - 0.9 ** step)) * (m[j] / scale);
    });
  }
  return softmax(theta);
}

function cosine(a, b) {
  const dot = (x, y) => sum(x.map((value, j) => value * y[j]));
  const size = Math.sqrt(dot(a, a) * dot(b, b));
  return size < 1e-12 ? 0 : dot(a, b) / size;
}

export function compute(x) {
  const weights = x.similarity.map((s, p) => pairWeight(s, x.aligned[p], x.weighting));
  const plain = x.rewards.map((sides) => sides.map(groupAdvantage));
  const weighted = x.rewards.map((sides, p) => sides.map((rewards, task) =>
    x.before
      ? groupAdvantage(rewards.map((r) => weights[p] * r))
      : plain[p][task].map((a) => weights[p] * a)));
  const pairs = x.rewards.length, start = Array(K).fill(0);
  const pull = (groups) => gradient(groups, start, pairs);
  return {
    weights, plain, weighted,
    grpo: climb(plain.flat(), pairs, x),
    pair_grpo: climb(weighted.flat(), pairs, x),
    cosine_pairs: cosine(pull(weighted[0]), pull(weighted[1])),
    cosine_tasks: cosine(pull(weighted.map((s) => s[0])), pull(weighted.map((s) => s[1]))),
  };
}

const FLAT = [0.5, 0.5, 0.5, 0.5];
export const PRESETS = {
  "exact opposites": [[[1, 0, 0, 1], FLAT], [[0, 1, 1, 0], FLAT]],
  "not quite opposites": [[[1, 0, 0, 1], FLAT], [[0.2, 0.9, 0.4, 0.6], FLAT]],
  "a small reward and a large one": [[[0.05, 0, 0, 0], FLAT], [[0, 1, 0, 0], FLAT]],
  "U against G": [[[1, 0, 0, 1], [0, 1, 1, 0]], [[1, 0, 0, 0], [0, 1, 0, 0]]],
};

const COLOURS = ["var(--u)", "var(--g)"];
const LOOK = `
:root { color-scheme: light dark; background: var(--page); --u: #17609b; --g: #a84a00;
  --ink: #1d2733; --quiet: #566170; --page: #fff;
  --line: #b8bcc2; --grpo: #b0b5bb }
@media (prefers-color-scheme: dark) {
  :root { --u: #6fb3ee; --g: #ff9d4d; --ink: #e6e9ec; --quiet: #a3adb8; --page: #14171b;
    --line: #565e68; --grpo: #7d8793 }
}
.two-pairs { font: 14px/1.4 Helvetica, Arial, sans-serif; color: var(--ink); padding: 8px }
.two-pairs > * { max-width: 860px }
.two-pairs fieldset { border: 0; padding: 2px 0; margin: 0; min-width: 0; display: flex;
  flex-wrap: wrap; gap: 4px 16px; align-items: center }
.two-pairs fieldset:first-child { gap: 6px; margin-bottom: 4px }
.two-pairs table { border-collapse: collapse; width: 100%; table-layout: fixed }
.two-pairs td, .two-pairs th { padding: 2px 6px; text-align: center; font-weight: normal }
.two-pairs th:first-child { text-align: left; width: 28% }
.two-pairs tr.pair th { padding-top: 10px }
.two-pairs tr.pair span { white-space: nowrap; margin-right: 10px }
.two-pairs tr.policy > * { border-top: 1px solid var(--line) }
.two-pairs small, .two-pairs .grpo { color: var(--quiet) }
.two-pairs input { accent-color: var(--u) }
.two-pairs input[type=range] { width: 84px; vertical-align: middle; margin: 2px 0 }
.two-pairs output { display: inline-block; min-width: 2.6em; text-align: right }
.two-pairs svg { display: block; margin: 0 auto }
.two-pairs .hidden { visibility: hidden }
.two-pairs button, .two-pairs select { font: inherit }
.two-pairs .result > * { margin: 0 4px }
@media (pointer: coarse) {  /* a finger is wider than a mouse */
  .two-pairs :is(button, select, input[type=range]) { min-height: 36px }
  .two-pairs input[type=checkbox] { width: 24px; height: 24px }
}
@media (max-width: 600px) {
  .two-pairs td, .two-pairs th { padding: 2px }
  .two-pairs table, .two-pairs tbody { display: block }
  .two-pairs tr { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)) }
  .two-pairs th:first-child { grid-column: 1 / -1; width: auto; padding-top: 8px }
  .two-pairs tr.policy > td { border: 0 }
  .two-pairs th br { display: none }
  .two-pairs td input[type=range] { width: 100% }
  .two-pairs td output, .two-pairs .result > * { display: block; text-align: center; margin: 0 }
}`;

function bars(values, colours, filled, scale, height, zero) {  // two, up or down from a line
  const body = values.map((value, i) => {
    const h = Math.abs(value) * scale, y = value > 0 ? zero - h : zero;
    const fill = filled || i === 0 ? colours[i] : "var(--page)";
    return `<rect x="${14 + 24 * i}" y="${y}" width="18" height="${h}"
      style="fill: ${fill}; stroke: ${colours[i]}; stroke-width: 2"/>`;
  });
  const line = `<path d="M2 ${zero}h66" style="stroke: var(--line)"/>`;
  return `<svg width="70" height="${height}" aria-hidden="true">${line}${body.join("")}</svg>`;
}

export function render(el, x) {
  const style = document.createElement("style"), box = document.createElement("div");
  style.textContent = LOOK;
  box.className = "two-pairs";
  const slider = (name, value, max, step, told) =>
    `<input type="range" name="${name}" min="0" max="${max}" step="${step}" value="${value}"
      ${told ? `aria-label="${told}"` : ""}><output></output>`;
  const option = (name, choices, chosen, told) => `<select name="${name}"
    ${told ? `aria-label="${told}"` : ""}>${choices.map((c) =>
    `<option${c === chosen ? " selected" : ""}>${c}</option>`).join("")}</select>`;
  const row = (p, task) => `<tr><th style="color: ${COLOURS[task]}">${
    ["U: answers", "G: drawings"][task]}<br> <small>advantage: grey &Acirc;, colour w&Acirc;</small></th>${
    FLAT.map((_, k) => `<td>${slider(`r${p}${task}${k}`, x.rewards[p][task][k], 1, 0.05,
      `reward of pair ${p + 1}, ${"UG"[task]}, action ${k + 1}`)}
      <div data-bars="${p}${task}${k}"></div></td>`).join("")}</tr>`;
  const pair = (p) => `<tr class="pair"><th colspan="5"><span><b>Pair ${p + 1}</b>
    ${option(`kind${p}`, ["retrieved", "aligned"], x.aligned[p] ? "aligned" : "retrieved",
      `kind of pair ${p + 1}`)}</span>
    <span>similarity ${slider(`s${p}`, x.similarity[p], 1, 0.01, `similarity of pair ${p + 1}`)}</span>
    <span>weight <b data-name="w${p}"></b></span></th></tr>${row(p, 0)}${row(p, 1)}`;
  const places = ["after normalising", "before normalising"];
  const presets = Object.keys(PRESETS).map((name) => `<button type="button">${name}</button>`);
  const actions = (cell) => FLAT.map((_, k) => cell(k)).join("");
  box.innerHTML = `
    <fieldset>try ${presets.join(" ")}</fieldset>
    <fieldset>
      <label>weighting ${option("weighting", ["sqrt", "linear", "none"], x.weighting)}</label>
      <label>the weight acts ${option("before", places, places[Number(x.before)])}</label>
      <label>optimiser ${option("optimiser", ["Adam", "SGD"], x.optimiser)}</label>
      <label>step size ${slider("lr", x.lr, 2, 0.05)}</label>
      <label>steps ${slider("steps", x.steps, 20, 1)}</label>
      <label><input type="checkbox" name="predict"> predict first</label>
    </fieldset>
    <table><tr><th>reward of the rollout that took</th>
      ${actions((k) => `<td>action ${k + 1}</td>`)}</tr>
      ${pair(0)}${pair(1)}
      <tr class="policy"><th>policy, grey: GRPO,<br> bold: Pair-GRPO</th>
      ${actions((k) => `<td data-bars="policy${k}"></td>`)}</tr>
      <tr class="policy"><th>probabilities</th>
      ${actions((k) => `<td class="result"><span class="grpo" data-name="grpo${k}"></span>
        <b data-name="pair_grpo${k}"></b></td>`)}</tr>
    </table>
    <p>The gradients of pair 1 and pair 2 have the cosine <b data-name="cosine_pairs"></b>,
      those of U and G <b data-name="cosine_tasks"></b>.
      <button type="button" data-reveal class="hidden">reveal</button></p>`;
  const input = (name) => box.querySelector(`[name="${name}"]`);
  const show = (name, value) => {
    const cell = box.querySelector(`[data-name="${name}"]`);
    cell.dataset.value = value;
    cell.textContent = (Math.abs(value) < 5e-4 ? 0 : value).toFixed(3);
  };
  const settings = () => ({
    rewards: [0, 1].map((p) => [0, 1].map((t) =>
      FLAT.map((_, k) => Number(input(`r${p}${t}${k}`).value)))),
    aligned: [0, 1].map((p) => input(`kind${p}`).value === "aligned"),
    similarity: [0, 1].map((p) => Number(input(`s${p}`).value)),
    weighting: input("weighting").value,
    before: input("before").value === "before normalising",
    optimiser: input("optimiser").value,
    lr: Number(input("lr").value),
    steps: Number(input("steps").value),
  });
  const cover = (on) => {
    for (const cell of box.querySelectorAll(".result, [data-bars^=policy]")) {
      cell.classList.toggle("hidden", on);
    }
    box.querySelector("[data-reveal]").classList.toggle("hidden", !on);
  };
  const bin = (name) => box.querySelector(`[data-bars="${name}"]`);
  const redraw = () => {
    const now = settings(), found = compute(now);
    for (const range of box.querySelectorAll("input[type=range]")) {
      const digits = range.step === "1" ? 0 : 2;
      range.nextElementSibling.textContent = Number(range.value).toFixed(digits);
    }
    for (const p of [0, 1]) {
      show(`w${p}`, found.weights[p]);
      for (const t of [0, 1]) FLAT.forEach((_, k) => {
        const values = [found.plain[p][t][k], found.weighted[p][t][k]];
        const colours = ["var(--grpo)", COLOURS[t]];
        bin(`${p}${t}${k}`).innerHTML = bars(values, colours, now.aligned[p], 12, 42, 21);
      });
    }
    FLAT.forEach((_, k) => {
      const values = [found.grpo[k], found.pair_grpo[k]];
      bin(`policy${k}`).innerHTML = bars(values, ["var(--grpo)", "var(--ink)"], true, 56, 60, 58);
      show(`grpo${k}`, found.grpo[k]);
      show(`pair_grpo${k}`, found.pair_grpo[k]);
    });
    show("cosine_pairs", found.cosine_pairs);
    show("cosine_tasks", found.cosine_tasks);
  };
  box.addEventListener("input", (event) => {
    if (event.target.name === "predict") return cover(event.target.checked);
    redraw();
    cover(input("predict").checked);
  });
  box.addEventListener("click", (event) => {
    if (event.target.matches("[data-reveal]")) return cover(false);
    const preset = PRESETS[event.target.textContent];
    if (!preset) return;
    for (const [p, sides] of preset.entries()) {
      for (const [t, rewards] of sides.entries()) {
        rewards.forEach((r, k) => { input(`r${p}${t}${k}`).value = r; });
      }
    }
    redraw();
    cover(input("predict").checked);
  });
  el.replaceChildren(style, box);
  redraw();
}
