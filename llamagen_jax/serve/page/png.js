// Text chunks of PNG files (https://www.w3.org/TR/png-3/#11textinfo).

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/**
 * The texts of the uncompressed tEXt and iTXt chunks, by keyword; {} for what is no PNG.
 *
 * @param {ArrayBuffer} buffer
 * @returns {Object<string, string>}
 */
export function textChunks(buffer) {
  const bytes = new Uint8Array(buffer);
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) return {};
  const view = new DataView(buffer);
  const texts = {};
  for (let start = 8; start + 12 <= bytes.length; ) {
    const length = view.getUint32(start);
    const type = new TextDecoder("latin1").decode(bytes.subarray(start + 4, start + 8));
    const data = bytes.subarray(start + 8, start + 8 + length);
    if (type === "tEXt") {
      const [keyword, text] = split(data, 1);
      texts[latin1(keyword)] = latin1(text);
    } else if (type === "iTXt") {
      const [keyword, afterKeyword] = split(data, 1);
      const [isCompressed] = afterKeyword;
      const [, , text] = split(afterKeyword.subarray(2), 2);
      if (!isCompressed) texts[latin1(keyword)] = new TextDecoder().decode(text);
    }
    start += 12 + length;
  }
  return texts;
}

/** The parts before the first `count` zero bytes, and the rest. */
function split(bytes, count) {
  const parts = [];
  for (let i = 0; i < count; i++) {
    const end = bytes.indexOf(0);
    parts.push(bytes.subarray(0, end));
    bytes = bytes.subarray(end + 1);
  }
  return [...parts, bytes];
}

const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);
