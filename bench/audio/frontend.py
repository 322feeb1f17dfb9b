"""Log-mel front ends. Every frame of a segment depends on that segment alone.

Shape legend: B batch, T samples, M mel bands, W frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOOR_DB = 80.0  # dynamic range kept below a segment's loudest bin
POWER_FLOOR = 1e-10  # -100 dB re full scale; keeps the logarithm of silence finite


class LogMel(nn.Module):
    """Turns segments into log-mel patches scaled to [-1, 1] by the segment's own maximum.

    Why per segment: the original subtracts the maximum of the whole batch, which makes a fingerprint
    depend on its neighbours. Source: the scaling is that of NMFP (ISMIR 2025), 1 + dB / 40 with a floor
    of -80 dB; STFT values are those of the released code of Singh et al. (window 512, hop 160, 64 HTK
    bands of power to 8 kHz, centred, last frame dropped), which give 64 x 96 for 0.96 s.
    """

    def __init__(self, rate_hz: int = 16_000, num_bands: int = 64, window: int = 512, hop: int = 160) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.mel = MelSpectrogram(rate_hz, n_fft=window, hop_length=hop, n_mels=num_bands, power=2.0)
        # Derived from the settings, so neither learned nor saved.
        for name in list(dict(self.mel.named_buffers())):
            owner = self.mel.get_submodule(name.rpartition(".")[0])
            owner._non_persistent_buffers_set.add(name.rpartition(".")[2])

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return patches (B, 1, M, W) in [-1, 1] of segments (B, T); a silent segment gives all ones."""
        power_BMW = self.mel(wave_BT)[..., :-1]
        level_BMW = 10 * torch.log10(power_BMW.clamp_min(POWER_FLOOR))
        below_top_BMW = level_BMW - level_BMW.amax(dim=(1, 2), keepdim=True)
        return (1 + below_top_BMW.clamp_min(-FLOOR_DB) / (FLOOR_DB / 2)).unsqueeze(1)
