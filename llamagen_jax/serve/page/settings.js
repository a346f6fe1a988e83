// The form's settings as the fields of a request, and the texts of a PNG as these.

const NUMBERS = [
  "n",
  "guidance_scale",
  "guidance_interval",
  "temperature",
  "top_k",
  "top_p",
];

/** The request that the form tells; empty fields are left out. */
export function readRequest(form, model) {
  const { prompt, seed, size } = form.elements;
  const request = { model: model.id, prompt: prompt.value.trim() };
  if (size.length > 1) request.size = size.value;
  for (const name of NUMBERS) {
    const { value } = form.elements[name];
    if (value !== "") request[name] = Number(value);
  }
  if (form.elements.greedy.checked) request.greedy = true;
  return { ...request, seed: exact(seed.value) };
}

/** Puts the fields of a request into the form, and its seed as one that is kept. */
export function fillForm(form, request) {
  for (const name of ["prompt", ...NUMBERS]) {
    form.elements[name].value = request[name] ?? "";
  }
  const sizes = [...form.elements.size.options].map(({ value }) => value);
  form.elements.greedy.checked = request.greedy ?? false;
  form.elements.size.selectedIndex = Math.max(sizes.indexOf(request.size), 0);
  form.elements.seed.value = request.seed;
  form.elements.random.checked = false;
  moveSliders(form);
}

/** Puts each slider where the number beside it is. */
export function moveSliders(form) {
  for (const slider of form.querySelectorAll("[data-of]")) {
    slider.value = form.elements[slider.dataset.of].value;
  }
}

/**
 * The fields of a request that redraws the image of a PNG, of the texts that this server and
 * sample.py write into it; null where it has none.
 */
export function requestOfPng(texts, model) {
  if (!/^\d+$/.test(texts.seed)) return null;
  const request = { n: 1, prompt: texts.prompt ?? (texts.label && classOf(texts.label, model)) };
  for (const name of NUMBERS) {
    if (Number.isFinite(parseFloat(texts[name]))) request[name] = Number(texts[name]);
  }
  if (texts.greedy === "True") request.greedy = true;
  if (model.sizes.includes(texts.size)) request.size = texts.size;
  return { ...request, seed: exact(texts.seed) };
}

/** What a request calls a class: its name, or its number where it has none of its own. */
export function classOf(label, model) {
  const name = model.class_names[label];
  const isUnique = name && model.class_names.filter((other) => other === name).length === 1;
  return isUnique ? name : String(label);
}

/** The settings of a request in words. */
export function describe(request) {
  const told = [
    ["size", request.size, undefined],
    ["guidance", request.guidance_scale, 1],
    ["guidance interval", request.guidance_interval, undefined],
    ["temperature", request.temperature, 1],
    ["top-k", request.top_k, 0],
    ["top-p", request.top_p, 1],
  ].filter(([, value, neutral]) => value !== neutral);
  const words = [["seed", request.seed], ...told].map(([name, value]) => `${name} ${value}`);
  if (request.greedy) words.push("greedy");
  return words.join(" · ");
}

/** The request of one image of a set alone: image i has the seed of the set + i. */
export function requestOfImage(request, index) {
  return { ...request, n: 1, seed: exact(BigInt(request.seed) + BigInt(index)) };
}

/** A seed as a number where JavaScript has that number, and else as a string. */
function exact(seed) {
  return Number.isSafeInteger(Number(seed)) ? Number(seed) : String(seed);
}
