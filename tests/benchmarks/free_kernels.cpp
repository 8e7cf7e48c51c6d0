// Kernels for the CPU that allocate their results and compute nothing, so that a step costs what its dispatch,
// autograd and Python cost. Registered over torch's own by tests/benchmarks/host_overhead.py --free-kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

namespace {

using at::IntArrayRef;
using at::Scalar;
using at::Tensor;
using at::TensorList;
using Maybe = std::optional<Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Tensor like(const Tensor& x, bool wanted = true) { return wanted ? at::empty_like(x) : Tensor(); }

Tensor product(const Tensor& a, const Tensor& b) { return at::empty({a.size(0), b.size(1)}, a.options()); }

Tensor product_and_bias(const Tensor&, const Tensor& a, const Tensor& b, const Scalar&, const Scalar&) {
  return product(a, b);
}

Tensor products(const Tensor& a, const Tensor& b) {
  return at::empty({a.size(0), a.size(1), b.size(2)}, a.options());
}

Tensor gelu(const Tensor& x, c10::string_view) { return like(x); }
Tensor gelu_backward(const Tensor&, const Tensor& x, c10::string_view) { return like(x); }
Tensor relu(const Tensor& x) { return like(x); }
Tensor relu_backward(const Tensor&, const Tensor& x, const Scalar&) { return like(x); }

Three layer_norm(const Tensor& x, IntArrayRef shape, const Maybe&, const Maybe&, double) {
  auto size = x.sizes().vec();
  std::fill(size.end() - static_cast<std::ptrdiff_t>(shape.size()), size.end(), 1);
  const auto options = x.options().dtype(at::kFloat);
  return {like(x), at::empty(size, options), at::empty(size, options)};
}

Three layer_norm_backward(const Tensor&, const Tensor& x, IntArrayRef, const Tensor&, const Tensor&, const Maybe& weight,
                          const Maybe& bias, std::array<bool, 3> wanted) {
  return {like(x, wanted[0]), wanted[1] ? like(*weight) : Tensor(), wanted[2] ? like(*bias) : Tensor()};
}

Three batch_norm(const Tensor& x, const Maybe&, const Maybe&, const Maybe&, const Maybe&, bool, double, double) {
  const auto options = x.options().dtype(at::kFloat);
  return {like(x), at::empty({x.size(1)}, options), at::empty({x.size(1)}, options)};
}

Three batch_norm_backward(const Tensor&, const Tensor& x, const Maybe& weight, const Maybe&, const Maybe&, const Maybe&,
                          const Maybe&, bool, double, std::array<bool, 3> wanted) {
  return {like(x, wanted[0]), wanted[1] ? like(*weight) : Tensor(), wanted[2] ? like(*weight) : Tensor()};
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor&, const Tensor&, double, bool, const Maybe&,
                                     std::optional<double>) {
  const auto output = at::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.options()).transpose(1, 2);
  return {output, at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat))};
}

Three attention_backward(const Tensor&, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&, const Tensor&,
                         double, bool, const Maybe&, std::optional<double>) {
  return {like(q), like(k), like(v)};
}

Tensor convolution(const Tensor& x, const Tensor& weight, const Maybe&, IntArrayRef padding, IntArrayRef stride,
                   IntArrayRef dilation, int64_t) {
  std::vector<int64_t> size{x.size(0), weight.size(0)};
  for (int64_t i = 0; i < x.dim() - 2; ++i) {
    size.push_back((x.size(i + 2) + 2 * padding[i] - dilation[i] * (weight.size(i + 2) - 1) - 1) / stride[i] + 1);
  }
  return at::empty(size, x.options());
}

Three convolution_backward(const Tensor&, const Tensor& x, const Tensor& weight, at::OptionalIntArrayRef, IntArrayRef,
                           IntArrayRef, IntArrayRef, bool, IntArrayRef, int64_t, std::array<bool, 3> wanted) {
  return {like(x, wanted[0]), like(weight, wanted[1]),
          wanted[2] ? at::empty({weight.size(0)}, weight.options()) : Tensor()};
}

void copy_all(TensorList, TensorList, bool) {}

void adamw(TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, double, double, double, double, double,
           bool, bool, const Maybe&, const Maybe&) {}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CPU, m) {
  m.impl("mm", &product);
  m.impl("addmm", &product_and_bias);
  m.impl("bmm", &products);
  m.impl("gelu", &gelu);
  m.impl("gelu_backward", &gelu_backward);
  m.impl("relu", &relu);
  m.impl("threshold_backward", &relu_backward);
  m.impl("native_layer_norm", &layer_norm);
  m.impl("native_layer_norm_backward", &layer_norm_backward);
  m.impl("native_batch_norm", &batch_norm);
  m.impl("native_batch_norm_backward", &batch_norm_backward);
  m.impl("_scaled_dot_product_flash_attention_for_cpu", &attention);
  m.impl("_scaled_dot_product_flash_attention_for_cpu_backward", &attention_backward);
  m.impl("_foreach_copy_", &copy_all);
  m.impl("_fused_adamw_", &adamw);
}

TORCH_LIBRARY_IMPL(aten, CompositeExplicitAutograd, m) {
  m.impl("mkldnn_convolution", &convolution);
  m.impl("convolution_backward", &convolution_backward);
}
