// The page: a form that asks the server for images, and the images that were drawn.

import * as api from "./api.js";
import { combobox } from "./combobox.js";
import { askKey, prepareDialogs, showCode, view } from "./dialogs.js";
import { hideSet, showSet } from "./gallery.js";
import { openHistory } from "./history.js";
import { textChunks } from "./png.js";
import {
  classOf,
  fillForm,
  moveSliders,
  readRequest,
  requestOfImage,
  requestOfPng,
} from "./settings.js";

const RETRY_MS = 2000;

const $ = (id) => document.getElementById(id);
const form = $("form");
// Of the sets on the page, their elements.
const elements = new Map();

let model;
let history;
// Aborts the request that is under way.
let drawing;

const actions = {
  use: (set) => use(set.request),
  code: (set) => showCode(set.request),
  remove,
  view,
};

// ---- what the page says

function say(text, isProblem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", isProblem);
}

function tell(error) {
  say(error.message, true);
  const field = error.param && form.elements[error.param];
  if (field) {
    $("more").open ||= $("more").contains(field);
    field.ariaInvalid = "true";
    field.focus();
  }
  if (!(error instanceof api.ApiError)) throw error;
}

async function serverIsBack() {
  do await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  while (!(await api.isReady()));
}

// ---- the form

/** Learns what the server draws, when it is there, and fits the form to it. */
async function connect() {
  while (!model) {
    try {
      model = await api.model();
    } catch (error) {
      if (error.status === 401 && (await askKey(error.message))) continue;
      tell(error);
      if (error.status === 401) return;
      await serverIsBack();
    }
  }
  say("");
  const isText = model.condition === "text";
  $("model").textContent = `${model.id} · ${model.size.replace("x", " × ")} px`;
  $(isText ? "class-field" : "caption-field").remove();
  $(isText ? "caption-field" : "class-field").hidden = false;
  form.elements.prompt.disabled = false;
  form.elements.n.max = model.max_n;
  for (const size of model.sizes) form.elements.size.add(new Option(size.replace("x", " × "), size));
  $("size-row").hidden = model.sizes.length < 2;
  fillForm(form, { n: Math.min(4, model.max_n), seed: randomSeed(), ...model.defaults });
  form.elements.random.checked = true;
  if (!isText) completeClasses();
  $("draw").ariaDisabled = "false";
  form.elements.prompt.focus();
}

function completeClasses() {
  const labels = [...Array(model.num_classes).keys()];
  const options = labels.map((label) => {
    const text = model.class_names[label] ?? String(label);
    return { text, label, value: classOf(label, model) };
  });
  combobox($("class"), $("classes"), options);
}

const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function use(request) {
  fillForm(form, request);
  say("The settings are in the form.");
  $("draw").focus();
}

async function useFile(file) {
  if (!model) return;
  const texts = textChunks(await file.arrayBuffer());
  const request = requestOfPng(texts, model);
  if (!request) {
    say(`${file.name} carries no settings: it is no PNG of this page or of sample.py.`, true);
    return;
  }
  use({ ...model.defaults, ...request });
  const number = texts["sample id"] ?? texts.number ?? "0";
  if (texts.generator && texts.generator !== model.id) {
    say(`The settings are in the form, but ${texts.generator} drew this image, not ${model.id}.`);
  } else if (number !== "0") {
    say(`The settings are in the form; the image itself is number ${number} of a command's run.`);
  }
}

// ---- drawing

async function draw(request) {
  const set = { request, images: Array(request.n).fill(null) };
  const shown = showSet(set, actions);
  drawing = new AbortController();
  elements.set(set, shown.element);
  $("sets").prepend(shown.element);
  refresh();
  const start = performance.now();
  let problem;
  try {
    await receive(set, shown, drawing.signal);
  } catch (error) {
    problem = error;
  }
  const isCancelled = drawing.signal.aborted;
  drawing = null;
  shown.finish();
  if (set.images.length) await keep(set);
  else drop(set);
  refresh();
  if (isCancelled) {
    say(`Cancelled. ${counted(set.images.length)} done.`);
  } else if (problem?.status === 401 && (await askKey(problem.message))) {
    await draw(request);
  } else if (problem) {
    tell(problem);
    if (![0, 503].includes(problem.status)) return;
    await serverIsBack();
    if ($("status").textContent === problem.message) say("The server is back.");
  } else {
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    say(`${counted(set.images.length)} in ${seconds} s.`);
  }
}

/** Shows the images of a set as they come from the server. */
async function receive(set, shown, signal) {
  const { request, images } = set;
  say(`Drawing ${counted(request.n)} …`);
  for await (const event of api.draw(request, signal)) {
    const index = event.image_index;
    if (event.type === "image_generation.partial_image") {
      shown.partial(index, event.b64_json);
    } else if (event.type === "image_generation.completed") {
      const bytes = Uint8Array.from(atob(event.b64_json), (letter) => letter.charCodeAt(0));
      const { seed } = requestOfImage(request, index);
      images[index] = { index, seed, png: new Blob([bytes], { type: "image/png" }) };
      shown.whole(index);
    }
  }
  if (images.includes(null)) throw new api.ApiError("The server broke off before all was drawn.");
}

const counted = (n) => (n === 1 ? "1 image" : `${n} images`);

// ---- the history

function sayNotKept() {
  $("keeping").textContent = "This browser does not keep the images: they are lost on reload.";
}

async function keep(set) {
  try {
    const old = await history.add(set);
    for (const other of elements.keys()) if (old.includes(other.id)) drop(other);
  } catch {
    sayNotKept();
  }
}

async function remove(set) {
  const element = elements.get(set);
  const next = element.nextElementSibling ?? element.previousElementSibling;
  drop(set);
  refresh();
  (next?.querySelector(".remove") ?? $("draw")).focus();
  await history?.remove(set.id);
}

function drop(set) {
  hideSet(elements.get(set));
  elements.delete(set);
}

async function showHistory() {
  try {
    history = await openHistory();
    for (const set of await history.all()) {
      const shown = showSet(set, actions);
      set.images.forEach((_, index) => shown.whole(index));
      shown.finish();
      elements.set(set, shown.element);
      $("sets").append(shown.element);
    }
  } catch {
    sayNotKept();
  }
  refresh();
}

/** Fits what is shown to what there is. */
function refresh() {
  $("empty").hidden = elements.size > 0;
  $("kept").hidden = elements.size === 0;
  $("clear").disabled = Boolean(drawing);
  $("draw").ariaDisabled = String(Boolean(drawing) || !model);
  if ($("cancel") === document.activeElement && !drawing) $("draw").focus();
  $("cancel").hidden = !drawing;
}

// ---- what the user does

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (drawing || !model) return;
  if (form.elements.random.checked) form.elements.seed.value = randomSeed();
  draw(readRequest(form, model));
});
form.addEventListener("input", ({ target }) => {
  target.removeAttribute("aria-invalid");
  if (target.dataset.of) form.elements[target.dataset.of].value = target.value;
  if (target === form.elements.seed) form.elements.random.checked = false;
  moveSliders(form);
});
form.addEventListener("invalid", () => ($("more").open = true), { capture: true });
$("caption").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
$("cancel").addEventListener("click", () => drawing?.abort());
$("code").addEventListener("click", () => {
  if (model && form.reportValidity()) showCode(readRequest(form, model));
});
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async ({ target }) => {
  if (target.files.length) await useFile(target.files[0]);
  target.value = "";
});
$("clear").addEventListener("click", async () => {
  if (!confirm("Remove all images that this browser keeps?")) return;
  for (const set of [...elements.keys()]) drop(set);
  await history?.clear();
  refresh();
});
document.addEventListener("keydown", ({ key, target }) => {
  if (key === "Escape" && !target.closest("dialog")) drawing?.abort();
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  $("drop").hidden = false;
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", async (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  $("drop").hidden = true;
  await useFile(event.dataTransfer.files[0]);
});

$("more").open = matchMedia("(min-width: 60rem)").matches;
prepareDialogs(use);
await showHistory();
await connect();
