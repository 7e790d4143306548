// Draws what is played as a spectrogram that moves to the left.

/** Draw the spectrum of a sound into the last column of a canvas with each frame of the screen. */
export function showSpectrogram(canvas, analyser) {
  analyser.fftSize = 2 * canvas.height;
  const [context, levels] = [canvas.getContext("2d"), new Uint8Array(analyser.frequencyBinCount)];
  analyser.getByteFrequencyData(levels);
  context.drawImage(canvas, -1, 0);
  levels.forEach((level, at) => {
    context.fillStyle = `hsl(${260 - level} 90% ${level / 4}%)`;
    context.fillRect(canvas.width - 1, canvas.height - 1 - at, 1, 1);
  });
  requestAnimationFrame(() => showSpectrogram(canvas, analyser));
}
