"""Convert the setting `device` to a PyTorch device."""

from mergeability.errors import UserError


def chosen_device(name: str = "auto") -> str:
    """Return the PyTorch device for "cpu", "cuda" or "cuda:<number>"; "auto" selects CUDA if available.

    Raises:
        UserError: the device is unknown or does not exist.
    """
    if name == "cpu":
        return name
    # Imported here, because device=cpu does not need torch.
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name = str(name)
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdigit() or name == "cuda"):
        raise UserError(f"Expected device to be auto, cpu, cuda or cuda:<number>; got {name!r}.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(
            f"There is no device {name} on this machine: PyTorch finds {torch.cuda.device_count()} CUDA "
            "devices. Use device=cpu."
        )
    return name
