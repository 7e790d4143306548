// Operations on the chosen stream: fork, snapshots, reset, delete. Destructive ones need a confirmation.

import { getJson, pathOf, send } from "../service.js";
import { number } from "../shapes.js";

const $ = (id) => document.getElementById(id);

/** The buttons of the chosen stream. */
export class Operations {
  #dialog;

  /**
   * @param {{dialog: Dialog, current: Function, onDone: Function}} on - `current` returns the model and the stream;
   *   `onDone` gets a message, and {stream, step, parent?, isDeleted?} of a stream that has changed
   */
  constructor({ dialog, current, onDone }) {
    this.#dialog = dialog;
    this.onDone = onDone;
    for (const operation of ["fork", "snapshots", "reset", "remove"]) {
      $(operation).addEventListener("click", async () => {
        try {
          await this[operation](...current());
        } catch (problem) {
          onDone(problem.message);
        }
      });
    }
  }

  fork(model, { name, step }) {
    this.#dialog.open({
      title: `Fork ${name}`,
      text: `Creates a copy of the stream's current state, at about step ${number(step)}. Both streams then continue independently.`,
      label: "Id of the new stream",
      name: `${name}-fork`,
      yes: "Fork",
      act: async (to) => {
        const created = await send("POST", pathOf(model.name, name, "fork"), { to });
        this.onDone(`${to} was created at step ${number(created.step)} as a copy of ${name}.`, { ...created, parent: name });
      },
    });
  }

  reset(model, { name, step }, snapshot = null) {
    const target = snapshot ? `snapshot ${snapshot.name} (step ${number(snapshot.step)})` : "the initial state";
    this.#dialog.open({
      title: `Reset ${name}?`,
      text: `The stream is at about step ${number(step)} and will be reset to ${target}. Later timesteps are lost.`,
      yes: "Reset",
      isDestructive: true,
      act: async () => {
        const body = snapshot ? { to: { snapshot: snapshot.name } } : {}; // unconditional: a live stream does not stay where it is
        const now = await send("POST", pathOf(model.name, name, "reset"), body);
        this.onDone(`${name} was reset to step ${number(now.step)}.`, { stream: name, step: now.step });
      },
    });
  }

  remove(model, { name, step }) {
    this.#dialog.open({
      title: `Delete ${name}?`,
      text: `The stream is at about step ${number(step)}. Its state and its snapshots are deleted. This cannot be undone. A later timestep creates a new stream of this name.`,
      yes: "Delete",
      isDestructive: true,
      act: async () => {
        await send("DELETE", pathOf(model.name, name));
        this.onDone(`${name} was deleted.`, { stream: name, isDeleted: true });
      },
    });
  }

  /** Show the snapshots of a stream; throws if they cannot be read. */
  async snapshots(model, stream) {
    const { snapshots } = await getJson(pathOf(model.name, stream.name, "snapshots"));
    this.#dialog.open({
      title: `Snapshots of ${stream.name}`,
      text: snapshots.length ? "The stream can be reset to these copies." : "This stream has no snapshots yet.",
      label: "Name of a new snapshot",
      name: `step-${stream.step}`,
      yes: "Take snapshot",
      items: snapshots.map((one) => snapshotItem(one, () => this.reset(model, stream, one), () => this.#drop(model, stream, one))),
      act: async (name) => {
        const old = snapshots.find((one) => one.name === name);
        if (old) this.#replace(model, stream, old);
        else await this.#take(model, stream, name);
      },
    });
  }

  #drop(model, stream, { name, step }) {
    this.#dialog.open({
      title: `Delete snapshot ${name}?`,
      text: `It has ${stream.name} at step ${number(step)}. The stream itself stays as it is.`,
      yes: "Delete",
      isDestructive: true,
      act: async () => {
        await send("DELETE", pathOf(model.name, stream.name, `snapshots/${encodeURIComponent(name)}`));
        this.onDone(`Snapshot ${name} of ${stream.name} was deleted.`);
      },
    });
  }

  #replace(model, stream, { name, step }) {
    this.#dialog.open({
      title: `Replace snapshot ${name}?`,
      text: `It has ${stream.name} at step ${number(step)} and will be replaced by the stream's current state.`,
      yes: "Replace",
      isDestructive: true,
      act: () => this.#take(model, stream, name),
    });
  }

  async #take(model, stream, name) {
    const taken = await send("PUT", pathOf(model.name, stream.name, `snapshots/${encodeURIComponent(name)}`));
    this.onDone(`Snapshot ${name} was taken of ${stream.name} at step ${number(taken.step)}.`);
  }
}

function snapshotItem({ name, step, taken_at: takenAt }, onReset, onDelete) {
  const item = document.createElement("li");
  const part = (tag, className, text) => {
    const node = document.createElement(tag);
    Object.assign(node, { className, textContent: text });
    item.append(node);
    return node;
  };
  const button = (text, label, onClick) => {
    const node = part("button", "", text);
    node.type = "button";
    node.setAttribute("aria-label", label);
    node.addEventListener("click", onClick);
  };
  part("span", "name", name);
  part("span", "note", `step ${number(step)}, ${new Date(takenAt).toLocaleString()}`);
  button("Reset to this", `Reset to snapshot ${name}`, onReset);
  button("Delete", `Delete snapshot ${name}`, onDelete);
  return item;
}
