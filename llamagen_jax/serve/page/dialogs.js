// The dialogs: one image large, a request as code, the key.

import { apiRoot, hasKey, keepKey } from "./api.js";
import { sharpenSmall } from "./gallery.js";
import { describe, requestOfImage } from "./settings.js";
import { curl, python } from "./snippets.js";

const viewer = document.getElementById("viewer");
const snippets = document.getElementById("snippets");
const key = document.getElementById("key");

let set;
let image;
let source;

/** Prepares the dialogs; `use` is called with the request of the image that is shown large. */
export function prepareDialogs(use) {
  sharpenSmall(viewer.querySelector("img"));
  viewer.querySelector(".previous").addEventListener("click", () => step(-1));
  viewer.querySelector(".next").addEventListener("click", () => step(1));
  viewer.querySelector(".use").addEventListener("click", () => {
    viewer.close();
    use(viewedRequest());
  });
  viewer.addEventListener("keydown", ({ key: pressed }) => {
    if (pressed === "ArrowLeft") step(-1);
    if (pressed === "ArrowRight") step(1);
  });
  viewer.addEventListener("close", () => URL.revokeObjectURL(source));
  for (const section of snippets.querySelectorAll("section")) {
    section.querySelector("button").addEventListener("click", () => copy(section));
  }
  for (const dialog of [viewer, snippets, key]) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  }
}

/** Shows an image of a set large. */
export function view(viewedSet, viewedImage) {
  set = viewedSet;
  show(viewedImage);
  viewer.showModal();
}

function step(by) {
  const done = set.images.filter(Boolean);
  show(done[(done.indexOf(image) + by + done.length) % done.length]);
}

function show(shown) {
  image = shown;
  URL.revokeObjectURL(source);
  source = URL.createObjectURL(image.png);
  const { prompt } = set.request;
  const element = viewer.querySelector("img");
  element.src = source;
  element.alt = prompt;
  viewer.querySelector("figcaption").replaceChildren(heading(prompt), describe(viewedRequest()));
  const download = viewer.querySelector(".download");
  download.href = source;
  download.download = `${prompt.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 60)}_${image.seed}.png`;
  for (const button of viewer.querySelectorAll(".previous, .next")) {
    button.hidden = set.images.length < 2;
  }
}

const viewedRequest = () => requestOfImage(set.request, image.index);

function heading(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}

/** Shows a request as code. */
export function showCode(request) {
  document.getElementById("curl").textContent = curl(request, apiRoot(), hasKey());
  document.getElementById("python").textContent = python(request, apiRoot(), hasKey());
  for (const button of snippets.querySelectorAll("section button")) button.textContent = "Copy";
  snippets.showModal();
}

async function copy(section) {
  const code = section.querySelector("code");
  const button = section.querySelector("button");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    // Where the page has no access to the clipboard, as over http from another machine.
    getSelection().selectAllChildren(code);
    button.textContent = "Press Ctrl+C";
  }
}

/** Asks for the server's key after its `message` of refusal; whether one was given. */
export function askKey(message) {
  document.getElementById("refusal").textContent = message;
  const field = document.getElementById("key-value");
  key.returnValue = "";
  key.showModal();
  return new Promise((resolve) => {
    key.addEventListener(
      "close",
      () => {
        const given = key.returnValue === "ok";
        if (given) keepKey(field.value);
        field.value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}
