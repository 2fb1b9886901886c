"""Torch backends that leave a trace in the user's model or in torch, and what of it changes."""

import torch

from influence_torch.problem import TorchProblem


class Keeps(TorchProblem):
    """Does no harm yet."""

    def __init__(self, model, loss, **options):
        super().__init__(model, loss, **options)
        self._user = model


class SwitchesTheMode(Keeps):
    def __init__(self, model, loss, **options):
        super().__init__(model, loss, **options)
        model.train()


class CallsTheUsersModel(Keeps):
    """In train mode, as it does for a moment only, the normalisation moves its statistics."""

    def gradients(self, batch, names):
        with torch.no_grad():
            self._user.train()(batch.x)
            self._user.eval()
        return super().gradients(batch, names)


class ChangesWhatIsFrozen(Keeps):
    def hessian_product(self, batch, v, names):
        with torch.no_grad():
            self._user.norm.bias += 1e-9
        return super().hessian_product(batch, v, names)


class Freezes(Keeps):
    def to(self, device):
        self._user.requires_grad_(False)
        return super().to(device)


class FillsGrad(Keeps):
    def gradient_combinations(self, batch, w, names):
        answer = super().gradient_combinations(batch, w, names)
        self._user.output.bias.grad = torch.zeros(2, dtype=w.dtype)
        return answer


class LeavesAHook(Keeps):
    def layer_statistics(self, batch, layers, labels):
        self._user.output.register_forward_hook(lambda module, x, y: None)
        return super().layer_statistics(batch, layers, labels)


class DrawsFromTorch(Keeps):
    def batches(self, data):
        torch.randperm(7)
        return super().batches(data)


MUTANTS = {
    SwitchesTheMode: "mode",
    CallsTheUsersModel: "buffers",
    ChangesWhatIsFrozen: "frozen parameters",
    Freezes: "requires_grad",
    FillsGrad: "grad",
    LeavesAHook: "hooks",
    DrawsFromTorch: "random generator",
}
