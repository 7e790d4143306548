import type { Transport } from "./transport.js";
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
export declare function openSocket(transport: Transport, path: string, onMessage: (document: any) => void, onClose: (reason: string) => void, signal?: AbortSignal): Promise<WebSocket>;
