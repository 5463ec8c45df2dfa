"""Weight formats against `F.linear`."""

import pytest
import torch
import torch.nn.functional as F

from trimode.errors import InputError
from trimode.model import choose_format
from trimode.model.formats import FbgemmFormat, Int8Format, OneDnnFormat, PlainFormat

FORMATS = {
    kind.name: kind(torch.float32, "cpu") for kind in (PlainFormat, OneDnnFormat, FbgemmFormat)
} | {"int8": Int8Format()}


def weights(rows=96, columns=48):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator)


@pytest.mark.parametrize("kernel", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 16, 70])
def test_every_format_gives_the_same_product(kernel, rows):
    weight, bias = weights()
    x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(1))
    tolerance = {"fbgemm": 2e-2, "int8": 0.2}.get(kernel, 1e-5)  # weights of 16 and of 8 bits
    for b in (None, bias):
        ours = FORMATS[kernel].linear([weight.clone()], b)(x)
        torch.testing.assert_close(ours, F.linear(x, weight, b), atol=tolerance, rtol=tolerance)


def test_fbgemm_holds_bf16_weights_without_loss():
    weight = weights()[0].bfloat16().float()
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    ours = FORMATS["fbgemm"].linear([weight.bfloat16()], None)(x)
    torch.testing.assert_close(ours, F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_an_unknown_dtype_is_refused_by_name():
    with pytest.raises(InputError, match="dtype: 'int3'; allowed: auto, fp32, bf16, int8"):
        choose_format("int3", "cpu")
