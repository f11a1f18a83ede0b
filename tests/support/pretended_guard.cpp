// Registers a device guard for CUDA that does nothing, so that a build of PyTorch for CPUs
// dispatches tensors which say that they are on CUDA devices.
#include <c10/core/impl/DeviceGuardImplInterface.h>

static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;

extern "C" void register_guard() {
  auto cuda = static_cast<size_t>(c10::DeviceType::CUDA);
  c10::impl::device_guard_impl_registry[cuda].store(&guard);
}
