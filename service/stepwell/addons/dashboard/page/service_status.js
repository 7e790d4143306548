// Whether the service responds, is ready, and accepts the key; shown at the top of the page.

import { get, hasKey, setKey } from "./service.js";

const SURVIVES = { memory: "the service", fsync: "the service and of the store", replica: "the service and of one store server" };
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

export class ServiceStatus {
  isDown = false;
  #since = null;

  /** @param {{onKey: Function, onDown: Function}} on - `onKey` is called when a key was entered, `onDown` when responses end */
  constructor(on) {
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      setKey($("key").value.trim());
      $("key").value = "";
      on.onKey();
    });
    this.on = on;
  }

  /** Whether a key must be entered before anything else. */
  get needsKey() {
    return !$("key-form").hidden;
  }

  show(kind, message) {
    $("state").dataset.state = kind;
    text("state", message);
  }

  /** Record that the service has responded. */
  up() {
    if (!this.isDown) return;
    this.isDown = false;
    this.#showStopped();
  }

  /** Record that it does not respond: no number on the page is current. */
  down() {
    if (this.isDown) return;
    this.isDown = true;
    this.#since = new Date();
    this.show("down", "The service does not respond");
    this.#showStopped();
    this.on.onDown();
  }

  #showStopped() {
    document.body.classList.toggle("stopped", this.isDown);
    $("stopped").hidden = !this.isDown;
    if (!this.isDown) return;
    const [address, since] = [new URL(".", document.baseURI).href, this.#since.toLocaleTimeString("en-GB")];
    text("stopped-text", `No response from ${address} since ${since}. Streams and charts show what was received before. This page tries again every two seconds.`);
  }

  /** Show whether the service is ready, and why it is not. */
  async showReadiness() {
    const { ready, reasons } = await (await get("readyz")).json();
    this.show(ready ? "ready" : "down", ready ? "Ready" : `Not ready: ${reasons.join("; ")}`);
  }

  /** Ask for a key, after a response with this status. */
  askForKey(status) {
    this.up();
    $("main").hidden = true;
    this.show("down", "API key required");
    text("key-problem", hasKey() ? (status === 403 ? "This key has no permission to read streams." : "This key is not valid.") : "");
    $("key-form").hidden = false;
    $("key").focus();
  }

  /** Show the page's content: the service has accepted the key, or needs none. */
  open({ version, durability }) {
    text("about", `version ${version} · confirmed steps survive a crash of ${SURVIVES[durability]}`);
    $("key-form").hidden = true;
    $("main").hidden = false;
  }
}
