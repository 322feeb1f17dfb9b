"""Log-mel front ends of the encoders. Every value of a patch depends on that patch's segment alone.

Shape legend: B batch, T samples, M mel bands, W frames, N segments of a wave, C cepstral coefficients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

FLOOR_DB = 80.0  # dynamic range below a segment's loudest bin; quieter bins are raised to it
POWER_FLOOR = 1e-10  # -100 dB re full scale; keeps the logarithm of silence finite
LEAST_DEVIATION_DB = 1e-2  # of a coefficient over a segment: rounding alone moves it by some 1e-4
MAGNITUDE_OFFSET = 0.06  # added to magnitudes before the logarithm, as in NAFP


class LogMel(nn.Module):
    """Turns segments into log-mel patches scaled to [-1, 1] relative to each segment's maximum.

    Why per segment: the original subtracts the maximum of the whole batch, which makes a fingerprint
    depend on the other segments of its batch.
    Source: the scaling is that of NMFP (ISMIR 2025), 1 + dB / 40 with a floor of -80 dB. The STFT settings are those
    of the released code of Singh et al. (window 512, hop 160, 64 HTK bands of power to 8 kHz, centred, last frame
    dropped), which give 64 x 96 for 0.96 s. With `last_frame`, the frame centred on the end of a segment is kept: 64 x
    100 for 0.99 s.
    """

    def __init__(
        self, rate_hz: int = 16_000, num_bands: int = 64, window: int = 512, hop: int = 160, last_frame: bool = False
    ) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.last_frame = last_frame
        self.mel: Any = make_nonpersistent(
            MelSpectrogram(rate_hz, n_fft=window, hop_length=hop, n_mels=num_bands, power=2.0)
        )

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return patches (B, 1, M, W) in [-1, 1] of segments (B, T); a silent segment gives all ones."""
        power_BMW = mel_power(self.mel, wave_BT)
        return _scale_by_top(_level_db(power_BMW if self.last_frame else power_BMW[..., :-1])).unsqueeze(1)

    def of_windows(self, wave_BT: Tensor, segment_samples: int, hop_samples: int) -> Tensor:
        """Return the patches (B, N, 1, M, W) of all whole segments of each wave, one every `hop_samples`.

        They equal those of `forward` within rounding. Overlapping segments share the frames that lie wholly within
        them, so that each is computed once; frames that reach over an end are mirrored there, and are of one segment
        alone. At a hop of 100 ms a segment of 0.96 s has 13 frames of its own instead of 97.
        """
        num_frames = segment_samples // self.mel.hop_length + self.last_frame
        level_BNMW = _levels_of_windows(self.mel, num_frames, wave_BT, segment_samples, hop_samples)
        if level_BNMW is None:
            return _patches_of_each(self, wave_BT, segment_samples, hop_samples)
        return _scale_by_top(level_BNMW).unsqueeze(2)


def _levels_of_windows(
    mel: Any, num_frames: int, wave_BT: Tensor, segment_samples: int, hop_samples: int
) -> Tensor | None:
    """Return the levels (B, N, M, W) in dB of all whole segments, each frame computed once; None where none is shared.

    Frame w of a segment is centred at w x step, the last of `num_frames` at or before its end.
    """
    step, reach = mel.hop_length, mel.n_fft // 2
    left = -(-reach // step)  # frames that begin before the segment
    right = num_frames - 1 - (segment_samples - reach) // step  # frames that end after it
    if hop_samples % step or left < 2 or right < 1 or segment_samples < 2 * mel.n_fft:
        return None
    segment_BNT = wave_BT.unfold(1, segment_samples, hop_samples)
    inner = num_frames - left - right
    heads_BNT = segment_BNT[..., : (left - 1) * step + reach]
    tails_BNT = segment_BNT[..., (num_frames - right) * step - reach :]
    beyond = (num_frames - 1) * step + reach - segment_samples
    heads_BNMW = _levels(mel, _mirror(heads_BNT, reach, 0))
    tails_BNMW = _levels(mel, _mirror(tails_BNT, 0, beyond))
    shared_BMW = _levels(mel, wave_BT[:, left * step - reach :])
    inner_BNMW = shared_BMW.unfold(2, inner, hop_samples // step)[:, :, : segment_BNT.shape[1]].transpose(1, 2)
    return torch.cat([heads_BNMW, inner_BNMW, tails_BNMW], dim=3)


def _levels(mel: Any, wave_BT: Tensor) -> Tensor:
    """Return the levels (..., M, W) in dB of all frames that lie wholly within a wave (..., T)."""
    return _level_db(mel_power(mel, wave_BT, centred=False))


class Mfcc(nn.Module):
    """Turns segments at 16 kHz into 13 mel-frequency cepstral coefficients, each standardised over its segment.

    Frames of 25 ms every 10 ms, the last one dropped; the cosine transform of the levels in dB of 40 bands. A
    coefficient that hardly changes within the segment (silence) is left near 0 instead of being blown up.
    Source: definition; what is standardised over, and thereby that the level of a segment plays no part, is ours.
    """

    dct_MC: Tensor

    def __init__(self, num_coefficients: int = 13, num_bands: int = 40) -> None:
        super().__init__()
        from torchaudio.functional import create_dct
        from torchaudio.transforms import MelSpectrogram

        self.mel: Any = make_nonpersistent(
            MelSpectrogram(16_000, n_fft=512, win_length=400, hop_length=160, n_mels=num_bands, power=2.0)
        )
        self.register_buffer("dct_MC", create_dct(num_coefficients, num_bands, "ortho"), persistent=False)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return the coefficients (B, 1, C, W) of segments (B, T), W = T // 160; those of silence are zeros."""
        return self._standardise(_level_db(mel_power(self.mel, wave_BT)[..., :-1])).unsqueeze(1)

    def of_windows(self, wave_BT: Tensor, segment_samples: int, hop_samples: int) -> Tensor:
        """Return the coefficients (B, N, 1, C, W) of all whole segments of each wave, as `LogMel.of_windows` does."""
        num_frames = segment_samples // self.mel.hop_length
        level_BNMW = _levels_of_windows(self.mel, num_frames, wave_BT, segment_samples, hop_samples)
        if level_BNMW is None:
            return _patches_of_each(self, wave_BT, segment_samples, hop_samples)
        return self._standardise(level_BNMW).unsqueeze(2)

    def _standardise(self, level_MW: Tensor) -> Tensor:
        """Return the coefficients (..., C, W) of levels (..., M, W), with mean 0 and deviation 1 over W."""
        value_CW = self.dct_MC.T @ level_MW
        deviation_C1, mean_C1 = torch.std_mean(value_CW, dim=-1, correction=0, keepdim=True)
        return (value_CW - mean_C1) / deviation_C1.clamp_min(LEAST_DEVIATION_DB)


def mel_power(mel: Any, wave_BT: Tensor, centred: bool = True) -> Tensor:
    """Return the power (..., M, W) in the bands of torchaudio's `MelSpectrogram` with power 2, as calling it does.

    It squares the parts of each bin; torchaudio takes the square of a square root, four times as long on a CPU.
    """
    from torchaudio.functional import spectrogram

    window, hop = mel.spectrogram.window, mel.hop_length
    bins_BFW = spectrogram(
        wave_BT, 0, window, mel.n_fft, hop, mel.win_length, power=None, normalized=False, center=centred
    )
    power_BMW: Tensor = mel.mel_scale(torch.addcmul(bins_BFW.real.square(), bins_BFW.imag, bins_BFW.imag))
    return power_BMW


def _patches_of_each(front_end: nn.Module, wave_BT: Tensor, segment_samples: int, hop_samples: int) -> Tensor:
    """Return the patches (B, N, ...) of all whole segments of each wave, one every hop, each computed by itself."""
    segment_BNT = wave_BT.unfold(1, segment_samples, hop_samples)
    patch_X: Tensor = front_end(segment_BNT.reshape(-1, segment_samples))
    return patch_X.view(*segment_BNT.shape[:2], *patch_X.shape[1:])


def _level_db(power: Tensor) -> Tensor:
    return 10 * torch.log10(power.clamp_min(POWER_FLOOR))


def _scale_by_top(level_MW: Tensor) -> Tensor:
    """Return levels (..., M, W) in dB scaled to [-1, 1]: 1 at the largest of each patch, -1 at FLOOR_DB below it."""
    below_top_MW = level_MW - level_MW.amax(dim=(-2, -1), keepdim=True)
    return 1 + below_top_MW.clamp_min(-FLOOR_DB) / (FLOOR_DB / 2)


def _mirror(wave_BNT: Tensor, before: int, after: int) -> Tensor:
    """Return waves with so many samples mirrored at their ends."""
    return functional.pad(wave_BNT, (before, after), mode="reflect")


class MagnitudeMel(nn.Module):
    """Turns segments at 8 kHz into NAFP's log-mel patches of magnitudes: 256 bands from 300 to 4000 Hz.

    Values are log10(magnitude + 0.06) minus the segment's maximum. With `maxnorm` they are then scaled to [-1, 1]
    as (x - min / 2) / |min / 2|. The released code's floor of -80 is left out: as log10(0.06) is -1.2, only a
    magnitude of 1e78 in the segment would bring another value down to it.

    DEVIATION: maximum and minimum are those of the segment, not of the batch, because a fingerprint must not
    depend on the other segments of its batch.
    Source: NAFP's released code (window 1024, hop 256, Hann, half a window of zeros on both sides, Slaney's scale
    and area). Its paper says power, its code takes magnitudes.
    """

    def __init__(self, maxnorm: bool = False) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.maxnorm = maxnorm
        self.mel = make_nonpersistent(
            MelSpectrogram(
                8_000,
                n_fft=1024,
                hop_length=256,
                f_min=300.0,
                f_max=4_000.0,
                n_mels=256,
                power=1.0,
                norm="slaney",
                mel_scale="slaney",
                pad_mode="constant",
            )
        )

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return patches (B, 1, 256, W) of segments (B, T), W = T // 256 + 1; a silent segment gives zeros."""
        level_BMW = torch.log10(self.mel(wave_BT) + MAGNITUDE_OFFSET)
        below_top_BMW = level_BMW - level_BMW.amax(dim=(1, 2), keepdim=True)
        if self.maxnorm:
            half_B11 = below_top_BMW.amin(dim=(1, 2), keepdim=True).abs() / 2
            # A flat segment has no range to divide by; it stays at zero.
            range_B11 = torch.where(half_B11 > 0, half_B11, 1.0)
            below_top_BMW = (below_top_BMW + half_B11) / range_B11
        return below_top_BMW.unsqueeze(1)

    def of_windows(self, wave_BT: Tensor, segment_samples: int, hop_samples: int) -> Tensor:
        """Return the patches (B, N, 1, 256, W) of all whole segments of each wave, one every `hop_samples`.

        Each is computed by itself: at 8 kHz, a hop of 100 ms is no multiple of the frames' 256 samples.
        """
        return _patches_of_each(self, wave_BT, segment_samples, hop_samples)


def make_nonpersistent(mel: nn.Module) -> nn.Module:
    """Return the module with its buffers left out of checkpoints: they are derived from the settings."""
    for name in list(dict(mel.named_buffers())):
        submodule = mel.get_submodule(name.rpartition(".")[0])
        submodule._non_persistent_buffers_set.add(name.rpartition(".")[2])
    return mel
