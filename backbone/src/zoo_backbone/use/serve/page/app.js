"use strict";
// The page of `zoo serve`. State: the model's facts, and for each input modality its value and how it was given.

const $ = (id) => document.getElementById(id);
const state = { model: null, inputs: {}, job: null };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

async function api(path, options = {}) {
  const answer = await fetch(path, options);
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `the server answered ${answer.status}`);
  return found;
}

const post = (path, body) =>
  api(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "error" : "";
}

// ---------------------------------------------------------------- inputs

function drawInputs() {
  for (const [name, modality] of Object.entries(state.model.modalities)) {
    if (!modality.input) continue;
    const body = element("div", { className: "body" });
    const use = element("input", { type: "checkbox", id: `use-${name}` });
    const card = element("div", { className: "card off" },
      element("h3", {}, element("label", { className: "use", htmlFor: use.id }, use, name)),
      element("p", { className: "hint" }, modality.summary), body);
    const weight = element("input", { type: "number", id: `weight-${name}`, min: -10, max: 10, step: 0.5 });
    card.append(element("p", { className: "body" }, element("label", { htmlFor: weight.id }, "Guidance weight "), weight));
    const input = { name, modality, use, weight, body, card, given: null, shown: null, cells: new Set() };
    state.inputs[name] = input;
    use.addEventListener("change", () => {
      card.classList.toggle("off", !use.checked);
      if (use.checked && !input.given && $("sample").value) fromSample(input);
      else drawBody(input);
    });
    $("inputs").append(card);
    drawBody(input);
  }
}

// Returns a function that tells whether nothing else was asked of the input, or typed into it, meanwhile.
function latest(input) {
  const asked = (input.asked = {});
  const { given } = input;
  return () => input.asked === asked && input.given === given;
}

async function fromSample(input) {
  const key = $("sample").value;
  const isLatest = latest(input);
  let shown = null;
  try {
    shown = await api(`/api/samples/${encodeURIComponent(key)}/${encodeURIComponent(input.name)}`);
  } catch (error) {
    tell(error.message, true);
  }
  if (!isLatest()) return;
  input.shown = shown;
  input.given = shown && { sample: key };
  input.cells.clear();
  drawBody(input);
}

async function fromFile(input, file) {
  const limit = state.model.limits.upload_bytes;
  if (!file) return;
  if (file.size > limit) return tell(`${file.name}: has more than ${Math.round(limit / 1e6)} MB`, true);
  const isLatest = latest(input);
  try {
    const path = `/api/uploads/${encodeURIComponent(input.name)}?filename=${encodeURIComponent(file.name)}`;
    const shown = await api(path, { method: "POST", body: file });
    if (!isLatest()) return;
    input.shown = shown;
    input.given = { upload: shown.upload };
    input.cells.clear();
    drawBody(input);
    tell(`${file.name} is the input ${input.name}`);
  } catch (error) {
    tell(error.message, true);
  }
}

function drawBody(input) {
  const { name, modality, body } = input;
  body.replaceChildren();
  const file = element("input", { type: "file", id: `file-${name}`, onchange: (event) => fromFile(input, event.target.files[0]) });
  body.append(element("p", {}, element("label", { htmlFor: file.id }, `File of ${name} `), file));
  if (state.model.samples.length) {
    body.append(element("p", {}, element("button", { type: "button", onclick: () => fromSample(input) }, "Take from the sample")));
  }
  if (modality.kind === "text") textEditor(input);
  else if (modality.kind === "object") dataEditor(input);
  else if (input.shown && input.shown.image) pictureEditor(input);
  else if (input.shown) body.append(element("pre", {}, input.shown.text));
}

function textEditor(input) {
  const id = `text-${input.name}`;
  const start = input.given && input.given.text !== undefined ? input.given.text : (input.shown && input.shown.data) || "";
  let field;
  if (input.modality.choices.length) {
    field = element("select", { id }, ...input.modality.choices.map((choice) => element("option", {}, choice)));
  } else {
    field = element("textarea", { id });
  }
  field.value = start || field.value;
  const keep = () => { input.given = { text: field.value }; };
  field.addEventListener("input", keep);
  if (!input.given && !state.model.samples.length) keep();
  input.body.append(element("label", { htmlFor: id }, `Text of ${input.name}`), field);
}

const isBoxes = (data, modality) => Array.isArray(data) && modality.value.includes('"box"') &&
  data.every((item) => item && Array.isArray(item.box) && item.box.length === 4 && typeof item.label === "string");
const isColours = (data, modality) => modality.value.includes("sRGB") && Array.isArray(data) && data.length > 0 &&
  data.every((item) => Array.isArray(item) && item.length === 3 && item.every(Number.isFinite));
const isFields = (data) => data && typeof data === "object" && !Array.isArray(data);

function dataEditor(input) {
  const { name, body } = input;
  const empty = input.modality.value.includes('"box"') ? [] : null;
  const data = input.given && input.given.data !== undefined ? input.given.data : input.shown ? structuredClone(input.shown.data) : empty;
  const keep = (changed) => { input.given = { data: changed }; source.value = JSON.stringify(changed); };
  const source = element("textarea", { id: `data-${name}`, value: data === null ? "" : JSON.stringify(data) });
  source.addEventListener("change", () => {
    try {
      input.given = { data: JSON.parse(source.value) };
      tell("");
      drawBody(input);
    } catch (error) {
      tell(`${name}: is no JSON: ${error.message}`, true);
    }
  });
  if (input.shown && input.shown.image && !(input.given && input.given.data)) {
    body.append(element("div", { className: "picture" }, element("img", { src: input.shown.image, alt: `${name} of the sample` })));
  }
  const rows = element("div", { className: "rows" });
  if (isBoxes(data, input.modality)) boxRows(rows, data, keep, () => drawBody(input));
  else if (isColours(data, input.modality)) colourRows(rows, data, keep);
  else if (isFields(data)) fieldRows(rows, data, keep, input);
  body.append(rows, element("label", { htmlFor: source.id }, `JSON of ${name}`), source);
}

function boxRows(rows, data, keep, again) {
  const canvas = element("canvas", { width: 256, height: 256, tabIndex: 0, role: "img", "aria-label": "Boxes; drag to draw a new one" });
  const paint = () => {
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#eef1f4";
    pen.fillRect(0, 0, 256, 256);
    data.forEach((item, index) => {
      const [x0, y0, x1, y1] = item.box.map((edge) => edge * 256);
      pen.strokeStyle = pen.fillStyle = `hsl(${(index * 67) % 360} 70% 35%)`;
      pen.lineWidth = 2;
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
      pen.fillText(item.label, x0 + 3, y0 + 12);
    });
  };
  let from = null;
  const at = (event) => {
    const bounds = canvas.getBoundingClientRect();
    return [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height]
      .map((number) => Math.min(1, Math.max(0, Number(number.toFixed(3)))));
  };
  canvas.addEventListener("pointerdown", (event) => { from = at(event); });
  canvas.addEventListener("pointerup", (event) => {
    const to = at(event);
    if (from && Math.abs(to[0] - from[0]) > 0.02 && Math.abs(to[1] - from[1]) > 0.02) {
      const box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
      data.push({ label: data.length ? data[data.length - 1].label : "object", box });
      keep(data);
      again();
    }
    from = null;
  });
  rows.append(element("div", { className: "picture" }, canvas));
  data.forEach((item, index) => {
    const label = element("input", { value: item.label, "aria-label": `Label of box ${index + 1}` });
    label.addEventListener("input", () => { item.label = label.value; keep(data); paint(); });
    rows.append(element("div", {}, label, element("button", { type: "button", onclick: () => { data.splice(index, 1); keep(data); again(); } }, `Remove box ${index + 1}`)));
  });
  canvas.style.position = "static";
  paint();
}

function colourRows(rows, data, keep) {
  const most = Math.max(...data.flat()) > 1 ? 255 : 1;
  const hex = (colour) => "#" + colour.map((part) => Math.round((part / most) * 255).toString(16).padStart(2, "0")).join("");
  const line = element("div");
  data.forEach((colour, index) => {
    const field = element("input", { type: "color", value: hex(colour), "aria-label": `Colour ${index + 1}` });
    field.addEventListener("input", () => {
      const parts = [1, 3, 5].map((start) => parseInt(field.value.slice(start, start + 2), 16));
      data[index] = parts.map((part) => (most === 255 ? part : part / 255));
      keep(data);
    });
    line.append(field);
  });
  rows.append(line);
}

function fieldRows(rows, data, keep, input) {
  for (const [key, value] of Object.entries(data)) {
    if (typeof value === "object") continue;
    const id = `field-${input.name}-${key}`;
    const field = element("input", { id, value, type: typeof value === "number" ? "number" : "text" });
    if (typeof value === "number") field.step = "any";
    field.addEventListener("input", () => {
      data[key] = typeof value === "number" ? Number(field.value) : field.value;
      keep(data);
    });
    const label = element("label", { htmlFor: id, title: input.modality.fields[key] || "" }, key);
    rows.append(element("div", {}, label, field));
  }
}

function pictureEditor(input) {
  const { name, modality, body, shown } = input;
  const picture = element("div", { className: "picture" }, element("img", { src: shown.image, alt: `Input ${name}` }));
  body.append(picture);
  const buttons = element("p", { className: "buttons" });
  body.append(buttons);
  if (!modality.grid) return;
  buttons.append(element("button", { type: "button", onclick: () => overlayTokens(picture, name, input.given) }, "Tokens"));
  if (!modality.inpaint) return;
  const canvas = element("canvas", {
    width: modality.grid[1] * 16, height: modality.grid[0] * 16, role: "img", "aria-label": `Cells of ${name} to generate anew`,
  });
  const paint = () => {
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = "rgba(240, 60, 60, .55)";
    for (const cell of input.cells) {
      const [row, column] = cell.split(",").map(Number);
      pen.fillRect(column * 16, row * 16, 16, 16);
    }
  };
  const mark = (event) => {
    const bounds = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - bounds.top) / bounds.height) * modality.grid[0]);
    const column = Math.floor(((event.clientX - bounds.left) / bounds.width) * modality.grid[1]);
    if (row < 0 || column < 0 || row >= modality.grid[0] || column >= modality.grid[1]) return;
    input.cells.add(`${row},${column}`);
    paint();
  };
  let painting = false;
  canvas.addEventListener("pointerdown", (event) => { painting = true; canvas.setPointerCapture(event.pointerId); mark(event); });
  canvas.addEventListener("pointermove", (event) => { if (painting) mark(event); });
  canvas.addEventListener("pointerup", () => { painting = false; });
  picture.append(canvas);
  buttons.append(element("button", { type: "button", onclick: () => { input.cells.clear(); paint(); } }, "Clear the mask"));
  buttons.append(element("span", { className: "hint" }, `Paint cells and choose ${name} as a target to generate them anew.`));
  paint();
}

async function overlayTokens(picture, name, given) {
  const old = picture.querySelector("canvas.tokens");
  if (old) return old.remove();
  try {
    const found = await post(`/api/tokens/${encodeURIComponent(name)}`, given);
    const size = 48;
    const canvas = element("canvas", {
      className: "tokens", width: found.ids[0].length * size, height: found.ids.length * size, role: "img", "aria-label": `Token ids of ${name}`,
    });
    const pen = canvas.getContext("2d");
    pen.font = "14px system-ui";
    pen.textAlign = "center";
    found.ids.forEach((row, r) => row.forEach((ids, c) => {
      pen.fillStyle = `hsl(${(ids[0] * 137) % 360} 80% 60% / .45)`;
      pen.fillRect(c * size, r * size, size, size);
      pen.fillStyle = "#000";
      pen.fillText(ids.slice(0, 2).join("."), c * size + size / 2, r * size + size / 2 + 5);
    }));
    picture.append(canvas);
  } catch (error) {
    tell(error.message, true);
  }
}

// ---------------------------------------------------------------- jobs

function query() {
  const inputs = {};
  for (const input of Object.values(state.inputs)) {
    if (input.use.checked && input.given) inputs[input.name] = input.given;
  }
  return inputs;
}

async function follow(job, onEvent) {
  state.job = job;
  const answer = await fetch(`/api/jobs/${job}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      onEvent(event);
    }
  }
}

async function run(path, body, onEvent, finished) {
  $("generate").disabled = $("search").disabled = true;
  const started = performance.now();
  try {
    const { job } = await post(path, body);
    await follow(job, onEvent);
    tell(`${finished} in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    tell(error.message, true);
  } finally {
    $("generate").disabled = $("search").disabled = false;
  }
}

function figure(shown, title) {
  const picture = shown.image
    ? element("div", { className: "picture" }, element("img", { src: shown.image, alt: title }))
    : element("pre", {}, shown.text);
  return element("figure", {}, picture, element("figcaption", {}, title));
}

function rowOf(target) {
  const id = `row-${target}`;
  if (!$(id)) {
    $("results").append(element("div", { id: `block-${target}` }, element("h3", {}, target), element("div", { id, className: "results-row" })));
  }
  return $(id);
}

function generate() {
  const targets = [...document.querySelectorAll("#targets input:checked")].map((box) => box.value);
  if (!targets.length) return tell("Choose at least one target.", true);
  const inputs = query();
  const inpaint = {};
  for (const name of targets) {
    const input = state.inputs[name];
    if (!(name in inputs)) continue;
    if (!input.cells.size) {
      const advice = state.model.modalities[name].inpaint ? "paint the cells to generate anew, or leave one out" : "leave one out";
      return tell(`${name} is an input and a target: ${advice}.`, true);
    }
    inpaint[name] = { cells: [...input.cells].map((cell) => cell.split(",").map(Number)) };
  }
  const body = { inputs, targets, inpaint };
  for (const key of ["num_samples", "seed", "steps", "temperature", "top_p", "guidance"]) body[key] = Number($(key).value);
  const weighted = Object.keys(inputs).filter((name) => state.inputs[name].weight.value !== "");
  if (weighted.length) body.guidance = Object.fromEntries(weighted.map((name) => [name, Number(state.inputs[name].weight.value)]));
  $("results").replaceChildren();
  tell("Waiting ...");
  run("/api/generate", body, (event) => {
    if (event.target && event.shown) {
      tell(`Generating ${event.target} ...`);
      rowOf(event.target).replaceChildren(...event.shown.map((shown, draw) => figure(shown, `${event.target} ${draw + 1}`)));
    }
    if (event.values) {
      rowOf(event.target).replaceChildren(...event.values.map((value, draw) => resultFigure(event.target, value, draw)));
      showTruth(event.target, inputs);
    }
  }, `Generated ${targets.join(", ")}`);
}

function resultFigure(target, value, draw) {
  const made = figure(value, `${target} ${draw + 1}`);
  const buttons = element("p", { className: "buttons" });
  const input = state.inputs[target];
  if (input) {
    buttons.append(element("button", {
      type: "button",
      onclick: () => {
        input.given = value.data !== undefined ? (input.modality.kind === "text" ? { text: value.data } : { data: value.data }) : { result: value.result };
        input.shown = value;
        input.cells.clear();
        input.use.checked = true;
        input.card.classList.remove("off");
        drawBody(input);
        tell(`${target} ${draw + 1} is an input now`);
      },
    }, "Use as input"));
  }
  if (state.model.modalities[target].grid && value.image) {
    buttons.append(element("button", { type: "button", onclick: () => overlayTokens(made.querySelector(".picture"), target, { result: value.result }) }, "Tokens"));
  }
  buttons.append(element("a", { href: `/api/results/${value.result}`, download: "" }, "Download"));
  made.append(buttons);
  return made;
}

// The true value of a target, beside the generated ones, if an input is a held-out sample.
async function showTruth(target, inputs) {
  const given = Object.values(inputs).find((input) => input.sample !== undefined);
  if (!given) return;
  try {
    const shown = await api(`/api/samples/${encodeURIComponent(given.sample)}/${encodeURIComponent(target)}`);
    const made = figure(shown, `true ${target}`);
    made.classList.add("true");
    rowOf(target).append(made);
  } catch {
    // the sample lacks this modality
  }
}

function search() {
  $("results").replaceChildren();
  tell("Searching ...");
  run("/api/search", { inputs: query(), find: $("find").value, count: 8 }, (event) => {
    if (event.hits) {
      rowOf("similar samples").replaceChildren(...event.hits.map((hit) => figure(hit.image || hit.text ? hit : { text: hit.key }, `${hit.key}: ${hit.cosine}`)));
    }
  }, "Searched");
}

// ---------------------------------------------------------------- start

async function start() {
  try {
    state.model = await api("/api/model");
  } catch (error) {
    return tell(error.message, true);
  }
  const { model } = state;
  document.title = `${model.title}: tokenizers-zoo`;
  $("title").textContent = model.title;
  $("about").textContent = `An any-to-any model of ${Object.keys(model.modalities).length} modalities, on ${model.device}. ` +
    "Choose inputs and targets, and generate.";
  $("num_samples").max = model.limits.samples;
  if (model.samples.length) {
    $("sample-row").hidden = false;
    $("sample").append(...model.samples.map((key) => element("option", {}, key)));
    $("sample").addEventListener("change", () => {
      for (const input of Object.values(state.inputs)) if (input.use.checked) fromSample(input);
    });
  }
  drawInputs();
  for (const [name, modality] of Object.entries(model.modalities)) {
    if (!modality.target) continue;
    const box = element("input", { type: "checkbox", value: name, id: `target-${name}` });
    $("targets").append(element("label", { htmlFor: box.id }, box, ` ${name}`));
  }
  const first = Object.values(state.inputs)[0];
  if (model.samples.length) {
    first.use.checked = true;
    first.card.classList.remove("off");
    await fromSample(first);
    const target = [...document.querySelectorAll("#targets input")].find((box) => box.value !== first.name);
    if (target) target.checked = true;
  }
  if (model.retrieval.length) {
    $("search").hidden = $("find-row").hidden = false;
    $("find").append(element("option", { value: "" }, "all modalities"), ...model.retrieval.map((name) => element("option", {}, name)));
  }
  $("generate").addEventListener("click", generate);
  $("search").addEventListener("click", search);
  window.addEventListener("beforeunload", () => { if (state.job) fetch(`/api/jobs/${state.job}`, { method: "DELETE", keepalive: true }); });
}

start();
