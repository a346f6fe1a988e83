// Sets of images on the page, the newest first.

import { describe } from "./settings.js";

// Images smaller than this are shown with their pixels as squares.
const SMALL = 128;

/**
 * Lays out a set, {request, images}, whose images are null until they are drawn.
 *
 * @param {{use, code, remove, view}} actions called with the set, `view` also with an image
 * @returns the set's element, and functions that show a picture, partial or whole, at an index,
 *   and that end the set with the images that are there
 */
export function showSet(set, actions) {
  const { content } = document.getElementById("set");
  const element = content.cloneNode(true).firstElementChild;
  element.querySelector("h2").textContent = set.request.prompt;
  element.querySelector(".about").textContent = describe(set.request);
  for (const name of ["use", "code", "remove"]) {
    element.querySelector(`.${name}`).addEventListener("click", () => actions[name](set));
  }
  const tiles = set.images.map(tile);
  element.querySelector(".pictures").replaceChildren(...tiles);

  function partial(index, base64) {
    picture(tiles[index], `data:image/png;base64,${base64}`, "Unfinished image");
  }

  function whole(index) {
    const image = set.images[index];
    const text = `${set.request.prompt}, seed ${image.seed}`;
    picture(tiles[index], URL.createObjectURL(image.png), text);
    tiles[index].disabled = false;
    tiles[index].addEventListener("click", () => actions.view(set, image));
  }

  /** Leaves the images that are there. */
  function finish() {
    tiles.filter((button) => button.disabled).forEach((button) => button.remove());
    set.images = set.images.filter(Boolean);
    element.ariaBusy = "false";
  }

  element.ariaBusy = "true";
  return { element, partial, whole, finish };
}

/** Takes a set off the page and frees its images. */
export function hideSet(element) {
  for (const { src } of element.querySelectorAll("img")) URL.revokeObjectURL(src);
  element.remove();
}

/** Has an image show its pixels as squares where they are few. */
export function sharpenSmall(image) {
  image.addEventListener("load", () => {
    image.classList.toggle("small", image.naturalWidth <= SMALL);
  });
}

function tile() {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "picture";
  button.disabled = true;
  return button;
}

function picture(button, source, text) {
  let image = button.firstElementChild;
  if (!image) {
    image = document.createElement("img");
    sharpenSmall(image);
    button.append(image);
  }
  image.alt = text;
  image.src = source;
}
