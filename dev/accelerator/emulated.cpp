// The device "emulated": a separate memory, random generator and communication backend; the CPU does its arithmetic.
// What it is for: dev/accelerator/__init__.py. torch calls a device from outside its own source PrivateUse1.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet DEVICE_KEY(c10::DispatchKey::PrivateUse1);
constexpr c10::DeviceIndex DEVICE_COUNT = 4;  // for as many processes; one process uses one of them
thread_local c10::DeviceIndex current_device = 0;

// ---------------------------------------------------------------- waits of the host

std::atomic<int64_t> host_waits{0};  // how often a GPU would have had to finish its work before the host went on
thread_local int kernel_depth = 0;

// Inside a kernel, whose copies from and to the CPU are no part of what is emulated.
struct KernelScope {
  KernelScope() { ++kernel_depth; }
  ~KernelScope() { --kernel_depth; }
  at::NoGradGuard no_grad;
};

void count_host_wait() {
  if (kernel_depth == 0) ++host_waits;
}

// ---------------------------------------------------------------- memory

// Whether anything has used the device or its pinned memory: on a GPU, that takes memory and time.
std::atomic<bool> used = false;

// The allocated blocks of one kind of memory.
struct Blocks {
  at::DataPtr allocate(size_t bytes, at::DeleterFnPtr deleter, at::Device device) {
    void* memory = nullptr;
    used = true;
    if (bytes > 0) {
      TORCH_CHECK(posix_memalign(&memory, 64, bytes) == 0, "out of memory: ", bytes, " bytes");
      memset(memory, 0xFB, bytes);  // fresh memory is often zero, which would hide that nobody has written it
      std::lock_guard lock(mutex);
      sizes[memory] = bytes;
      current += bytes;
      peak = std::max(peak.load(), current.load());
    }
    return {memory, memory, deleter, device};
  }

  void free(void* memory) {
    std::lock_guard lock(mutex);
    current -= sizes[memory];
    sizes.erase(memory);
    ::free(memory);
  }

  bool contains(const void* memory) {
    std::lock_guard lock(mutex);
    return sizes.count(memory) > 0;
  }

  std::mutex mutex;
  std::unordered_map<const void*, int64_t> sizes;
  std::atomic<int64_t> current = 0;
  std::atomic<int64_t> peak = 0;
};

// never destroyed: Python may free tensors after this library's objects are gone
auto& device_blocks = *new Blocks;
auto& pinned_blocks = *new Blocks;

struct DeviceMemory final : c10::DeviceAllocator {
  at::DataPtr allocate(size_t bytes) override {
    return device_blocks.allocate(bytes, raw_deleter(), at::Device(DEVICE, current_device));
  }
  at::DeleterFnPtr raw_deleter() const override {
    return [](void* memory) { device_blocks.free(memory); };
  }
  void copy_data(void* target, const void* source, size_t bytes) const override { memcpy(target, source, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = device_blocks.current;
    stats.allocated_bytes[0].peak = device_blocks.peak;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override { device_blocks.peak = device_blocks.current.load(); }
} device_memory;

struct PinnedMemory final : at::HostAllocator {
  at::DataPtr allocate(size_t bytes) override { return pinned_blocks.allocate(bytes, raw_deleter(), at::kCPU); }
  at::DeleterFnPtr raw_deleter() const override {
    return [](void* memory) { pinned_blocks.free(memory); };
  }
  void copy_data(void* target, const void* source, size_t bytes) const override { memcpy(target, source, bytes); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
} pinned_memory;

REGISTER_ALLOCATOR(DEVICE, &device_memory);
REGISTER_HOST_ALLOCATOR(DEVICE, &pinned_memory);

// ---------------------------------------------------------------- random numbers

// A generator of the CPU that only this device draws from.
struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(at::Generator generator)
      : c10::GeneratorImpl(at::Device(DEVICE, 0), DEVICE_KEY), numbers(std::move(generator)) {}

  void set_current_seed(uint64_t seed) override { numbers.set_current_seed(seed); }
  uint64_t current_seed() const override { return numbers.current_seed(); }
  uint64_t seed() override { return numbers.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "this generator has no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "this generator has no offset"); }
  void set_state(const c10::TensorImpl& state) override { numbers.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return numbers.unsafeGetGeneratorImpl()->get_state();
  }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(numbers.clone()); }

  at::Generator numbers;
};

at::Generator new_generator() { return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator()); }

at::Generator& default_generator() {
  static at::Generator generator = new_generator();
  return generator;
}

at::Generator numbers_of(const at::Generator& generator) {
  TORCH_CHECK(generator.device().type() == DEVICE, "Expected a generator of the device, not of ", generator.device());
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->numbers;
}

// ---------------------------------------------------------------- devices and streams

c10::DeviceIndex exchange_device(c10::DeviceIndex index) {
  const auto before = current_device;
  if (index >= 0) current_device = index;
  return before;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICE_COUNT; }
  c10::DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(c10::DeviceIndex index) const override { exchange_device(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return exchange_device(index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchange_device(index); }
  at::Device getDeviceFromPtr(void*) const override { return {DEVICE, current_device}; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* memory) const override { return pinned_blocks.contains(memory); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }

  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), bytes);  // with the storage's own allocator
  }
};

// A kernel has ended when its call returns, so one stream stands for all, and an event has always happened.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr auto static_type = DEVICE;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}

  c10::DeviceType type() const override { return DEVICE; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICE_COUNT; }
  c10::Device getDevice() const override { return {DEVICE, current_device}; }
  c10::Device exchangeDevice(c10::Device device) const override { return {DEVICE, exchange_device(device.index())}; }
  void setDevice(c10::Device device) const override { exchange_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { exchange_device(device.index()); }

  c10::Stream getStream(c10::Device device) const noexcept override {
    const auto index = device.has_index() ? device.index() : current_device;
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEVICE, index));
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void synchronizeStream(const c10::Stream&) const override { count_host_wait(); }
  void synchronizeDevice(c10::DeviceIndex) const override { count_host_wait(); }

  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override { count_host_wait(); }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---------------------------------------------------------------- operations that the CPU cannot do for the device

bool is_on_device(const Tensor& tensor) { return tensor.device().type() == DEVICE; }

// The same memory as a tensor of the CPU.
Tensor host_view(const Tensor& tensor) {
  if (!is_on_device(tensor)) return tensor;
  auto view = at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
  view.unsafeGetTensorImpl()->_set_conj(tensor.is_conj());
  view.unsafeGetTensorImpl()->_set_neg(tensor.is_neg());
  return view;
}

OptionalTensor host_view(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? OptionalTensor(host_view(*tensor)) : std::nullopt;
}

Tensor to_device(const Tensor& tensor) {
  return tensor.defined() ? tensor.to(at::Device(DEVICE, current_device)) : tensor;
}

void check_devices(const Tensors& tensors, const std::string& operation) {
  bool on_device = false;
  bool on_host = false;
  for (const auto& tensor : tensors) {
    on_device |= is_on_device(tensor);
    on_host |= !is_on_device(tensor) && tensor.dim() > 0;  // a CPU tensor of shape () counts as a number
  }
  TORCH_CHECK(!(on_device && on_host), operation, ": Expected all tensors to be on the same device, but found ",
              at::Device(DEVICE, current_device), " and cpu");
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
             std::optional<at::Device> device, std::optional<bool> pin_memory,
             std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!c10::pinned_memory_or_default(pin_memory), "only tensors of the CPU can be pinned");
  TORCH_CHECK(c10::layout_or_default(layout) == at::kStrided, "the device has strided tensors only");
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(size, &device_memory, DEVICE_KEY, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(size, stride, &device_memory, DEVICE_KEY, c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  // as with CUDA: what goes to memory that is not pinned is waited for even with non_blocking
  const bool to_host = !is_on_device(target);
  const bool waits = !non_blocking || (to_host && !target.is_pinned());
  if (waits && is_on_device(source) == to_host) count_host_wait();
  const KernelScope scope;
  host_view(target).copy_(host_view(source));
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  at::native::resize_(target, source.sizes(), std::nullopt);
  return copy_from(source, target, false);
}

at::Scalar item(const Tensor& tensor) {
  count_host_wait();
  return at::native::_local_scalar_dense_cpu(tensor);
}

// The fallback would lose the running statistics: the operation's schema does not say that it changes them.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& input, const OptionalTensor& weight,
                                              const OptionalTensor& bias, const OptionalTensor& mean,
                                              const OptionalTensor& variance, bool training, double momentum,
                                              double eps) {
  const KernelScope scope;
  const auto [output, batch_mean, batch_scale] =
      at::native_batch_norm(host_view(input), host_view(weight), host_view(bias), host_view(mean),
                            host_view(variance), training, momentum, eps);
  return {to_device(output), to_device(batch_mean), to_device(batch_scale)};
}

// The operation takes no generator, so the fallback would draw from the CPU's.
std::tuple<Tensor, Tensor> dropout(const Tensor& input, double p, std::optional<bool> training) {
  const double kept = training.value_or(true) ? 1 - p : 1;  // torch calls this for 0 < p < 1 only
  const Tensor mask = at::empty_like(input, input.options().dtype(at::kBool)).bernoulli_(kept, default_generator());
  return {input * mask / kept, mask};
}

// The fallback would warn that it resizes the result.
Tensor mse_loss(const Tensor& input, const Tensor& target, int64_t reduction) {
  check_devices({input, target}, "aten::mse_loss");
  const KernelScope scope;
  return to_device(at::mse_loss(host_view(input), host_view(target), reduction));
}

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                   int64_t groups) {
  TORCH_CHECK(input.device() == weight.device(), "Input type (", input.toString(), ") and weight type (",
              weight.toString(), ") should be the same");
  const KernelScope scope;
  return to_device(at::convolution(host_view(input), host_view(weight), host_view(bias), stride, padding, dilation,
                                   transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& input,
                                                        const Tensor& weight, IntArrayRef stride,
                                                        IntArrayRef padding, IntArrayRef dilation, bool transposed,
                                                        IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> mask) {
  const KernelScope scope;
  const std::array<int64_t, 1> bias_size{gradient.size(1)};
  const auto [input_gradient, weight_gradient, bias_gradient] =
      at::convolution_backward(host_view(gradient), host_view(input), host_view(weight), IntArrayRef(bias_size),
                               stride, padding, dilation, transposed, output_padding, groups, mask);
  return {to_device(input_gradient), to_device(weight_gradient), to_device(bias_gradient)};
}

// ---------------------------------------------------------------- all other operations

// Indices and lengths may be on the CPU, as with CUDA.
const std::unordered_set<std::string> TAKES_HOST_TENSORS = {
    "aten::index",         "aten::index_put_",            "aten::_index_put_impl_",
    "aten::_unsafe_index", "aten::_pack_padded_sequence", "aten::_pack_padded_sequence_backward",
    "aten::_ctc_loss",     "aten::_ctc_loss_backward",
};

// Whether the shape of the result, or a result that the host takes, depends on the values in the tensors.
bool makes_host_wait(const c10::OperatorHandle& operation, const Tensors& tensors) {
  if (operation.hasTag(at::Tag::data_dependent_output)) return true;
  const auto is_mask = [](const Tensor& tensor) { return tensor.scalar_type() == at::kBool; };
  const auto& name = operation.schema().name();
  if (name.find("index") != std::string::npos) return std::any_of(tensors.begin() + 1, tensors.end(), is_mask);
  return operation.hasTag(at::Tag::dynamic_output_shape);
}

Tensors tensors_in(const c10::IValue& argument) {
  Tensors tensors;
  if (argument.isTensor()) tensors.push_back(argument.toTensor());
  if (argument.isTensorList()) tensors = argument.toTensorVector();
  if (argument.isOptionalTensorList()) {
    for (const OptionalTensor& tensor : argument.toOptionalTensorList()) tensors.push_back(tensor.value_or(Tensor()));
  }
  return tensors;
}

void run_on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  static const auto OPTIONAL_GENERATOR = c10::OptionalType::create(c10::GeneratorType::get());
  const auto& parameters = operation.schema().arguments();
  Tensors tensors;
  bool takes_generator = false;
  for (size_t i = 0; i < parameters.size(); ++i) {
    auto& argument = torch::jit::peek(*stack, i, parameters.size());
    for (const auto& tensor : tensors_in(argument)) {
      if (tensor.defined()) tensors.push_back(tensor);
    }
    if (*parameters[i].type() == *OPTIONAL_GENERATOR) {
      argument = numbers_of(argument.isNone() ? default_generator() : argument.toGenerator());
      takes_generator = true;
    }
  }
  const auto& name = operation.schema().name();
  // else it would draw from the CPU's generator, which no GPU does
  TORCH_CHECK(takes_generator || !operation.hasTag(at::Tag::nondeterministic_seeded), name, " takes no generator");
  if (TAKES_HOST_TENSORS.count(name) == 0) check_devices(tensors, name);
  if (makes_host_wait(operation, tensors)) count_host_wait();
  const KernelScope scope;
  at::native::cpu_fallback(operation, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("resize_", at::native::resize_);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_.source_Storage", static_cast<Tensor& (*)(Tensor&, at::Storage)>(at::native::set_));
  library.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", item);
  library.impl("mse_loss", mse_loss);
  library.impl("native_batch_norm", batch_norm);
  library.impl("native_dropout", dropout);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

}  // namespace

// ---------------------------------------------------------------- autocast, with the lists for CUDA

namespace at::autocast {
namespace {

#define LOWER_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER_PRECISION)
  AT_FORALL_FP32(FULL_PRECISION)
  AT_FORALL_PROMOTE(WIDEST)
}

}  // namespace
}  // namespace at::autocast

// ---------------------------------------------------------------- communication

namespace {

using c10d::ReduceOp;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

WorkPtr done(const Tensors& result) {
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                         std::vector{c10::Device(DEVICE, current_device)});
  future->markCompleted(c10::IValue(result));
  return c10d::Work::create_from_future(future);
}

// What DDP and FSDP need, through another backend for tensors of the CPU.
class Communication final : public c10d::Backend {
 public:
  explicit Communication(c10::intrusive_ptr<c10d::Backend> host)
      : c10d::Backend(host->getRank(), host->getSize()), host_(std::move(host)) {}

  const std::string getBackendName() const override { return "emulated_ccl"; }

  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    host_->barrier(options)->wait();
    return done({});
  }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    const KernelScope scope;
    auto views = host_views(tensors);
    host_->broadcast(views, options)->wait();
    return done(tensors);
  }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    const KernelScope scope;
    auto views = host_views(tensors);
    auto summed = options;
    const bool average = options.reduceOp == ReduceOp::AVG;
    if (average) summed.reduceOp = ReduceOp::SUM;  // gloo has no average
    host_->allreduce(views, summed)->wait();
    if (average) for (auto& view : views) view.div_(getSize());
    return done(tensors);
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    const KernelScope scope;
    std::vector<Tensors> output_views;
    for (const auto& tensors : outputs) output_views.push_back(host_views(tensors));
    auto input_views = host_views(inputs);
    host_->allgather(output_views, input_views, options)->wait();
    return done(outputs[0]);
  }

  // output: the tensors of all processes, one after the other in the first dimension
  WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
    std::vector<Tensors> outputs{output.view({-1}).chunk(getSize())};
    Tensors inputs{input.reshape({-1})};
    allgather(outputs, inputs, options);
    return done({output});
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    for (size_t i = 0; i < outputs.size(); ++i) _allgather_base(outputs[i], inputs[i], options);
    return done(outputs);
  }

  // input: as many parts in the first dimension as processes, of which this one gets its own, reduced over all
  WorkPtr _reduce_scatter_base(Tensor& output, Tensor& input, const c10d::ReduceScatterOptions& options) override {
    Tensors whole{input.clone()};
    c10d::AllreduceOptions reduce;
    reduce.reduceOp = options.reduceOp;
    allreduce(whole, reduce);
    output.copy_(whole[0].view({-1}).chunk(getSize())[getRank()].view(output.sizes()));
    return done({output});
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    for (size_t i = 0; i < outputs.size(); ++i) _reduce_scatter_base(outputs[i], inputs[i], options);
    return done(outputs);
  }

 private:
  static Tensors host_views(const Tensors& tensors) {
    Tensors views;
    for (const auto& tensor : tensors) views.push_back(host_view(tensor));
    return views;
  }

  c10::intrusive_ptr<c10d::Backend> host_;
};

}  // namespace

PYBIND11_MODULE(emulated_backend, module) {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  module.def("device_count", [] { return DEVICE_COUNT; });
  module.def("manual_seed", [](uint64_t seed) { default_generator().set_current_seed(seed); });
  module.def("is_initialized", [] { return used.load(); });
  module.def("get_rng_state", [] {
    used = true;
    return default_generator().get_state();
  });
  module.def("set_rng_state", [](const Tensor& state) { default_generator().set_state(state); });
  module.def("host_waits", [] { return host_waits.load(); });
  module.def("communication", [](c10::intrusive_ptr<c10d::Backend> host) -> c10::intrusive_ptr<c10d::Backend> {
    return c10::make_intrusive<Communication>(std::move(host));
  });
}
