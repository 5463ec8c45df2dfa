/** Pictures that go with the next message: picked, pasted or dropped. */

import { element } from './view.js';

const read = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(new Error(`${file.name}: cannot be read`));
  reader.readAsDataURL(file);
});

export const picture = (url, name) => element('img', { src: url, alt: name, title: name });

/** The tray above the message. `changed` is called when its pictures have changed. */
export class Tray {
  names = new Map(); // URL to the name of its file, of every picture ever shown
  #urls = [];

  constructor(root, changed = () => {}) {
    this.root = root;
    this.changed = changed;
  }

  async add(files) {
    for (const file of files) {
      const url = await read(file);
      this.names.set(url, file.name || 'picture');
      this.put([...this.#urls, url]);
    }
  }

  put(urls) {
    this.#urls = urls;
    this.root.hidden = !urls.length;
    this.root.replaceChildren(...urls.map((url, i) => element('span', {}, picture(url, this.names.get(url)),
      element('button', { type: 'button', 'aria-label': `Remove ${this.names.get(url)}`,
        onclick: () => this.put(urls.filter((_, other) => other !== i)) }, '×'))));
    this.changed();
  }

  /** The pictures, which then belong to a message. */
  take() {
    const taken = this.#urls;
    this.put([]);
    return taken;
  }

  get urls() { return this.#urls; }

  shown(urls) {
    return urls.map((url) => picture(url, this.names.get(url)));
  }
}

/** Files of a drop or of the clipboard; text that is pasted is none. */
export const filesOf = (data) => [...(data?.files ?? [])];
