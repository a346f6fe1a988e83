// What was drawn, kept in the browser: sets of images of one request each.

const IMAGES = 200;

/**
 * Opens the history.
 *
 * A set is {id, request, images: [{seed, png: Blob}]}, where `request` is what was sent.
 */
export async function openHistory() {
  const opening = indexedDB.open("llamagen_jax", 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("sets", { keyPath: "id", autoIncrement: true });
  };
  const database = await result(opening);
  const store = (mode) => database.transaction("sets", mode).objectStore("sets");

  /** All sets, the newest first. */
  const all = async () => (await result(store("readonly").getAll())).reverse();

  const remove = (id) => result(store("readwrite").delete(id));

  /** Keeps a set, and of the older ones as many as stay within IMAGES; returns the others' ids. */
  const add = async (set) => {
    set.id = await result(store("readwrite").add(set));
    let images = 0;
    const old = (await all()).filter((kept) => (images += kept.images.length) > IMAGES);
    for (const { id } of old) await remove(id);
    return old.map(({ id }) => id);
  };

  const clear = () => result(store("readwrite").clear());

  return { all, add, remove, clear };
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
