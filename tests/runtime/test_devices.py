"""What precision "auto" takes a device for."""

from pathlib import Path

import pytest
import torch

from art_aft.runtime.devices import has_bfloat16_units

PROBES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


class TestBfloat16Units:
    @pytest.mark.parametrize(
        ("found", "expected"), [((), False), (PROBES[:1], True), (PROBES[1:], True), (PROBES, True)]
    )
    def test_either_kind_of_unit_will_do(self, found, expected, monkeypatch):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        for name in PROBES:
            monkeypatch.setattr(torch.cpu, name, lambda name=name: name in found, raising=False)
        assert has_bfloat16_units(torch.device("cpu")) is expected

    @pytest.mark.parametrize(
        ("allowed", "amx", "avx512_bf16"),
        [
            *((None, True, True), ("ALL", True, True), ("avx512_core_amx", True, True)),
            *(("AVX512_CORE_BF16", False, True), ("AVX512_CORE", False, False), ("avx2", False, False)),
        ],
    )
    def test_units_that_onednn_is_kept_from_do_not_count(self, allowed, amx, avx512_bf16, monkeypatch):
        if allowed is None:
            monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        else:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
        for name, expected in zip(PROBES, (amx, avx512_bf16), strict=True):
            for other in PROBES:
                monkeypatch.setattr(torch.cpu, other, lambda here=other == name: here, raising=False)
            assert has_bfloat16_units(torch.device("cpu")) is expected

    def test_a_torch_without_the_probes_has_none(self, monkeypatch):
        for name in PROBES:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        assert has_bfloat16_units(torch.device("cpu")) is False

    def test_devices_that_nobody_measured_have_none(self):
        assert has_bfloat16_units(torch.device("meta")) is False

    @pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks the kernel")
    def test_a_processor_of_which_the_kernel_knows_no_such_unit_has_none(self):
        units = {"amx_bf16", "amx_tile", "avx512_bf16"} & set(Path("/proc/cpuinfo").read_text("utf-8").split())
        assert units or has_bfloat16_units(torch.device("cpu")) is False
