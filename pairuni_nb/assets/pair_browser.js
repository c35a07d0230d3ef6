// Retrieved pairs as pairing.retrieve finds them, for any threshold: slide it, and pairs come and go.
// x.similarity[g][u]; x.u and x.g: {picture, text} each; x.chosen: what the aligned pairs took.

export function compute(x) {  // pairing.retrieve over the images that no aligned pair took
  const taken = { u: new Set(x.chosen.u), g: new Set(x.chosen.g) };
  const candidates = [];  // in the order of G, best first; of equal ones the lower index
  x.similarity.forEach((row, g) => {
    if (taken.g.has(g)) return;
    row.map((s, u) => ({ g, u, s }))
      .filter((pair) => !taken.u.has(pair.u) && pair.s > x.delta)
      .sort((a, b) => b.s - a.s || a.u - b.u)
      .slice(0, x.top_n)
      .forEach((pair) => candidates.push(pair));
  });
  if (x.order === "best") candidates.sort((a, b) => b.s - a.s);  // stable
  const partner = new Map();
  for (const pair of candidates) {
    if (partner.has(pair.g) || taken.u.has(pair.u)) continue;
    taken.u.add(pair.u);
    partner.set(pair.g, pair);
  }
  return [...partner.values()].sort((a, b) => a.g - b.g);
}

const LOOK = `
:root { color-scheme: light dark; background: var(--page); --u: #17609b; --g: #a84a00;
  --ink: #1d2733; --quiet: #566170; --page: #fff;
  --card: #f3f4f5; --new: #d9eafa; --line: #b8bcc2 }
@media (prefers-color-scheme: dark) {
  :root { --u: #6fb3ee; --g: #ff9d4d; --ink: #e6e9ec; --quiet: #a3adb8; --page: #14171b;
    --card: #1f2429; --new: #173a57; --line: #565e68 }
}
.pair-browser { font: 14px/1.4 Helvetica, Arial, sans-serif; color: var(--ink); padding: 8px }
.pair-browser > * { max-width: 900px }
.pair-browser fieldset { border: 0; padding: 2px 0; margin: 0; min-width: 0; display: flex;
  flex-wrap: wrap; gap: 4px 22px; align-items: center }
.pair-browser input[type=range] { width: 180px; vertical-align: middle; accent-color: var(--u) }
.pair-browser select { font: inherit }
@media (pointer: coarse) {  /* a finger is wider than a mouse */
  .pair-browser :is(select, input[type=range]) { min-height: 36px }
}
.pair-browser output { display: inline-block; min-width: 2.2em; text-align: right }
.pair-browser .slots { display: grid; gap: 10px; margin-top: 10px;
  grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)) }
.pair-browser figure { margin: 0; padding: 5px 0; text-align: center; font-size: 12px;
  background: var(--card); border-radius: 8px }
.pair-browser img, .pair-browser .none { width: 64px; height: 64px; display: block;
  margin: 2px auto; image-rendering: pixelated; border: 2px solid var(--g); border-radius: 3px }
.pair-browser img.u { border-color: var(--u) }
.pair-browser .none { border: 2px dashed var(--line) }
.pair-browser figure.alone { color: var(--quiet) }
.pair-browser figure.alone img { opacity: 0.55 }
.pair-browser figure.new { background: var(--new) }`;

const text = (tag, words, name) => {
  const el = document.createElement(tag);
  el.textContent = words;
  if (name) el.className = name;
  return el;
};

function image(side, record) {
  const el = document.createElement("img");
  el.src = record.picture;
  el.alt = el.title = record.text;
  el.className = side;
  return el;
}

function slot(x, g, pair, before) {  // one G image and whom it found
  const box = document.createElement("figure");
  box.dataset.g = g;
  box.dataset.u = pair ? pair.u : "";
  box.className = pair ? (before === pair.u ? "" : "new") : "alone";
  box.append(
    pair ? image("u", x.u[pair.u]) : text("div", "", "none"),
    text("div", pair ? pair.s.toFixed(2) : "no partner"),
    image("g", x.g[g]),
  );
  return box;
}

export function render(el, x) {
  const style = text("style", LOOK), box = text("div", "", "pair-browser");
  box.innerHTML = `
    <fieldset>
      <label>threshold &delta; <input type="range" name="delta" min="0" max="1" step="0.01">
        <output></output></label>
      <label>candidates <input type="range" name="top_n" min="1" max="20" step="1">
        <output></output></label>
      <label>who chooses first <select name="order"><option value="g">G, in its order</option>
        <option value="best">the most similar</option></select></label>
    </fieldset>
    <p aria-live="polite"></p><div class="slots"></div>`;
  const input = (name) => box.querySelector(`[name="${name}"]`);
  for (const name of ["delta", "top_n", "order"]) input(name).value = x[name];
  const free = x.g.map((_, g) => g).filter((g) => !x.chosen.g.includes(g));
  let last = null;
  const redraw = () => {
    const [delta, top_n] = [Number(input("delta").value), Number(input("top_n").value)];
    input("delta").nextElementSibling.textContent = delta.toFixed(2);
    input("top_n").nextElementSibling.textContent = top_n;
    const found = compute({ ...x, delta, top_n, order: input("order").value });
    const partner = new Map(found.map((pair) => [pair.g, pair]));
    const sum = found.reduce((total, pair) => total + pair.s, 0);
    const mean = found.length ? `, mean similarity ${(sum / found.length).toFixed(3)}` : "";
    box.querySelector("p").textContent =
      `${found.length} of ${free.length} G images have a partner${mean}`;
    const before = (g) => (last ? last.get(g)?.u : partner.get(g)?.u);
    box.querySelector(".slots").replaceChildren(
      ...free.map((g) => slot(x, g, partner.get(g), before(g))));
    last = partner;
  };
  box.addEventListener("input", redraw);
  el.replaceChildren(style, box);
  redraw();
}
