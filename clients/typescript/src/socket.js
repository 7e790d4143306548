import { StepwellError } from "./errors.js";

/** @import { Transport } from "./transport.js" */

const OPEN_MS = 10_000;

/**
 * Open a WebSocket of the service. Resolves with the open socket; rejects with a plain `Error` if it cannot be opened:
 * the platform gives no reason, so the caller finds it out over HTTP.
 * @param {Transport} transport
 * @param {string} path
 * @param {(document: any) => void} onMessage
 * @param {(reason: string) => void} onClose Called once, when an opened socket ends.
 * @param {AbortSignal} [signal] Ends it, as closing the client does.
 * @returns {Promise<WebSocket>}
 */
export function openSocket(transport, path, onMessage, onClose, signal) {
  if (!transport.WebSocket) {
    throw new StepwellError(
      "no_websocket",
      "This platform has no WebSocket. Use Node 22 or later, or give the client one: new Client(url, { WebSocket }).",
    );
  }
  const { format, key } = transport;
  /** @type {WebSocket} */
  const socket = new transport.WebSocket(transport.base.replace(/^http/, "ws") + path, [format.protocol]);
  socket.binaryType = "arraybuffer";
  return new Promise((resolve, reject) => {
    let isOpen = false;
    const close = () => socket.close(1000);
    const off = transport.onEnd(signal, close);
    const timer = setTimeout(close, OPEN_MS);
    socket.onopen = () => {
      isOpen = true;
      clearTimeout(timer);
      if (key !== undefined) socket.send(format.encode({ auth: key })); // browsers cannot send a header
      resolve(socket);
    };
    socket.onerror = () => reject(new Error("the connection failed"));
    socket.onclose = ({ code, reason }) => {
      clearTimeout(timer);
      off();
      const words = `the connection was closed with ${code}${reason && `: ${reason}`}`;
      if (isOpen) onClose(words);
      else reject(new Error(words));
    };
    socket.onmessage = ({ data }) => {
      let document;
      try {
        document = format.decode(typeof data === "string" ? data : new Uint8Array(data));
      } catch {
        return socket.close(4000, "unreadable message"); // whoever waits sends again
      }
      onMessage(document);
    };
  });
}
