// An input that completes class names, as https://www.w3.org/WAI/ARIA/apg/patterns/combobox/.

const SHOWN = 100;

/**
 * @param {HTMLInputElement} input with the role combobox
 * @param {HTMLUListElement} list with the role listbox
 * @param {{text: string, value: string, label: number}[]} options `text` is searched and shown,
 *   `value` is put into the input
 */
export function combobox(input, list, options) {
  let active = -1;

  function open(query) {
    const wanted = query.trim().toLowerCase();
    const startsWord = ({ text }) => ` ${text.toLowerCase()}`.includes(` ${wanted}`);
    const found = options
      .filter(({ text, label }) => text.toLowerCase().includes(wanted) || String(label) === wanted)
      .sort((a, b) => startsWord(b) - startsWord(a));
    list.replaceChildren(...found.slice(0, SHOWN).map(item));
    // What is typed in full needs no list, which would lie over what comes next.
    const isTyped = found.length === 1 && found[0].text.toLowerCase() === wanted;
    list.hidden = !found.length || isTyped;
    input.setAttribute("aria-expanded", String(!list.hidden));
    activate(-1);
  }

  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    activate(-1);
  }

  function item({ text, value, label }) {
    const element = document.createElement("li");
    element.id = `class-${label}`;
    element.role = "option";
    element.dataset.value = value;
    element.append(text);
    if (text !== String(label)) {
      const number = document.createElement("small");
      number.textContent = label;
      element.append(number);
    }
    return element;
  }

  function activate(index) {
    active = index;
    [...list.children].forEach((element, i) => {
      element.ariaSelected = String(i === index);
      if (i === index) element.scrollIntoView({ block: "nearest" });
    });
    input.setAttribute("aria-activedescendant", list.children[index]?.id ?? "");
  }

  function choose(element) {
    input.value = element.dataset.value;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    close();
  }

  const keys = {
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    Enter: () => active >= 0 && (choose(list.children[active]), true),
    Escape: () => !list.hidden && (close(), true),
  };

  function move(step) {
    if (list.hidden) open("");
    const count = list.children.length;
    if (count) activate(active < 0 && step < 0 ? count - 1 : (active + step + count) % count);
    return true;
  }

  input.addEventListener("input", () => open(input.value));
  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", () => list.hidden && open(""));
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (!keys[event.key]?.()) return;
    event.preventDefault();
    event.stopPropagation();
  });
  // Before the input loses the focus, which closes the list.
  list.addEventListener("pointerdown", (event) => event.preventDefault());
  list.addEventListener("click", (event) => {
    const element = event.target.closest("li");
    if (element) choose(element);
  });
}
