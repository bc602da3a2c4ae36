// The Python face of the extension. Tensors come as addresses (the Python side has checked dtype,
// device, shape and contiguity), plans leave as NumPy views on memory that the scheduler owns.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <tuple>

#include "decoder.hpp"
#include "hash.hpp"
#include "isa.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "rouge.hpp"
#include "scheduler.hpp"
#include "segment_attention.hpp"

namespace py = pybind11;
using namespace srlm;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A view that keeps its owner alive; valid until the next plan.
template <typename T>
py::array view(const std::vector<T>& data, py::handle owner, std::vector<py::ssize_t> shape) {
  return py::array(py::dtype::of<T>(), std::move(shape), {}, data.data(), owner);
}

template <typename T>
py::array view(const std::vector<T>& data, py::handle owner) {
  return view(data, owner, {static_cast<py::ssize_t>(data.size())});
}

template <auto Field>
auto plan_view() {
  return [](py::object self) { return view(self.cast<Scheduler&>().current().*Field, self); };
}

// heads, kv_heads, head_dim, value_width, page_tokens, is_bf16
using ShapeArguments = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;

PageShape page_shape(const ShapeArguments& arguments) {
  const auto& [heads, kv_heads, head_dim, value_width, page_tokens, is_bf16] = arguments;
  return {heads, kv_heads, head_dim, value_width, page_tokens, is_bf16};
}

// What the attention of one step needs beside each layer's tensors; keeps its arrays alive.
class PagedBatchView {
 public:
  PagedBatchView(Array<int64_t> slots, Array<int32_t> row_starts, Array<int32_t> context_lengths,
                 Array<int32_t> block_table, const PageShape& shape)
      : slots_(std::move(slots)), row_starts_(std::move(row_starts)),
        context_lengths_(std::move(context_lengths)), block_table_(std::move(block_table)),
        shape_(shape) {
    if (block_table_.ndim() != 2 || row_starts_.size() != block_table_.shape(0) + 1 ||
        context_lengths_.size() != block_table_.shape(0))
      throw std::invalid_argument("PagedBatch: wanted row_starts [S+1], lengths [S], table [S, W]");
    batch_ = {row_starts_.data(), context_lengths_.data(), block_table_.data(),
              block_table_.shape(0), block_table_.shape(1)};
  }

  const PagedBatch& batch() const { return batch_; }
  const int64_t* slots() const { return slots_.data(); }
  int64_t num_rows() const { return slots_.size(); }

  void attend(uintptr_t q, int64_t q_stride, uintptr_t k, int64_t k_stride, uintptr_t v,
              int64_t v_stride, uintptr_t keys, uintptr_t values, float scale, int64_t window,
              uintptr_t out) const {
    py::gil_scoped_release release;
    write_pages(at<float>(k), k_stride, at<float>(v), v_stride, slots_.data(), slots_.size(),
                shape_, at<void>(keys), at<void>(values));
    const AttentionPlan plan(batch_, shape_, window);
    paged_attention(at<float>(q), q_stride, plan, shape_, at<void>(keys), at<void>(values), scale,
                    {at<void>(out), shape_.heads * shape_.head_dim, false});
  }

 private:
  Array<int64_t> slots_;
  Array<int32_t> row_starts_, context_lengths_, block_table_;
  PageShape shape_;
  PagedBatch batch_;
};

using Linear = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t>;  // weight, bias, out, in

Projection projection(const Linear& layer, bool is_bf16, bool gated = false) {
  const auto& [weight, bias, out_width, in_width] = layer;
  return Projection(at<void>(weight), at<void>(bias), out_width, in_width, is_bf16, gated);
}

std::unique_ptr<Decoder> make_decoder(const ShapeArguments& shape, int64_t width, float eps,
                                      uintptr_t embedding, uintptr_t final_norm, uintptr_t head,
                                      int64_t vocab) {
  const PageShape pages = page_shape(shape);
  return std::make_unique<Decoder>(pages, width, eps, at<void>(embedding),
                                   as_floats(at<void>(final_norm), width, pages.is_bf16),
                                   projection({head, 0, vocab, width}, pages.is_bf16));
}

void add_layer(Decoder& self, const Linear& qkv, const Linear& o, const Linear& gate_up,
               const Linear& down, uintptr_t attn_norm, uintptr_t mlp_norm, uintptr_t q_norm,
               uintptr_t k_norm, int64_t window, uintptr_t keys, uintptr_t values) {
  const bool bf16 = self.is_bf16();
  const int64_t width = std::get<3>(qkv), head_dim = self.head_dim();
  self.add_layer({projection(qkv, bf16), projection(o, bf16), projection(gate_up, bf16, true),
                  projection(down, bf16), as_floats(at<void>(attn_norm), width, bf16),
                  as_floats(at<void>(mlp_norm), width, bf16),
                  as_floats(at<void>(q_norm), head_dim, bf16),
                  as_floats(at<void>(k_norm), head_dim, bf16), window, at<void>(keys),
                  at<void>(values)});
}

void decoder_forward(Decoder& self, Array<int64_t> token_ids, uintptr_t cosines, uintptr_t sines,
                     const PagedBatchView& batch, uintptr_t hidden) {
  if (token_ids.size() != batch.num_rows())
    throw std::invalid_argument("forward: wanted as many token_ids as slots");
  const int64_t* ids = token_ids.data();
  py::gil_scoped_release release;
  self.forward(ids, batch.num_rows(), at<float>(cosines), at<float>(sines), batch.slots(),
               batch.batch(), at<void>(hidden));
}

void decoder_head(Decoder& self, uintptr_t hidden, Array<int64_t> wanted, uintptr_t logits) {
  const int64_t* rows = wanted.data();
  const int64_t count = wanted.size();
  py::gil_scoped_release release;
  self.head(at<void>(hidden), rows, count, at<float>(logits));
}

// One linear layer alone: x [rows, in] and weight [out, in] in one dtype, bias [out] fp32 or 0 ->
// out [rows, out] fp32, added to what is there with `add`; or, `gated`, silu of its first half times
// the second, [rows, out / 2] fp32.
void linear(uintptr_t x, int64_t rows, const Linear& layer, bool is_bf16, bool add, bool gated,
            uintptr_t out) {
  const auto& [weight, bias, out_width, in_width] = layer;
  const Projection packed(at<void>(weight), nullptr, out_width, in_width, is_bf16, gated);
  OperandRows operand;
  const Operand own = operand.of(rows, in_width, is_bf16);
  const int64_t size = is_bf16 ? 2 : 4;
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(static_cast<char*>(own.data) + r * own.stride * size,
                at<char>(x) + r * in_width * size, in_width * size);
  py::gil_scoped_release release;
  if (gated)
    return packed_swiglu(own, rows, packed.weight, at<float>(bias),
                         {at<void>(out), out_width / 2, false});
  packed_linear(own, rows, packed.weight, at<float>(bias), add, at<float>(out));
}

// data, is_bf16, rows, width, stride, bias, softcap, temperature
using BlockArguments =
    std::tuple<uintptr_t, bool, int64_t, int64_t, int64_t, uintptr_t, float, float>;

LogitBlock logit_block(const BlockArguments& arguments) {
  const auto& [data, is_bf16, rows, width, stride, bias, softcap, temperature] = arguments;
  return {at<void>(data), is_bf16, rows, width, stride, at<float>(bias), {softcap, temperature}};
}

void exponentials(const BlockArguments& block, uintptr_t targets, int64_t first, uintptr_t top,
                  uintptr_t total, uintptr_t moment, uintptr_t shrink, bool store) {
  py::gil_scoped_release release;
  logit_exponentials(logit_block(block), at<int64_t>(targets), first, at<float>(top),
                     at<float>(total), at<float>(moment), at<float>(shrink), store);
}

void slopes(const BlockArguments& block, uintptr_t targets, int64_t first, uintptr_t facts,
            uintptr_t upstream) {
  py::gil_scoped_release release;
  logit_slopes(logit_block(block), at<int64_t>(targets), first, at<float>(facts),
               at<float>(upstream));
}

py::tuple sample_tokens(uintptr_t logits, int64_t vocab, Array<int64_t> rows,
                        Array<float> temperature, Array<int32_t> top_k, Array<float> top_p,
                        Array<float> min_p, Array<float> repetition_penalty,
                        Array<uint64_t> noise_keys, Array<int64_t> positions,
                        Array<int32_t> history, Array<int32_t> history_starts,
                        Array<int32_t> banned, Array<int32_t> banned_starts, uintptr_t masks,
                        Array<int32_t> mask_rows, Array<int32_t> forced) {
  const py::ssize_t count = rows.size();
  if ((masks != 0 && mask_rows.size() != count) || forced.size() != count)
    throw std::invalid_argument("sample: wanted mask_rows and forced for each of rows");
  Array<int32_t> tokens(count);
  Array<float> logprobs(count);
  const SamplingBatch batch{at<float>(logits), vocab, count, rows.data(), temperature.data(),
                            top_p.data(), min_p.data(), repetition_penalty.data(), top_k.data(),
                            noise_keys.data(), positions.data(), history.data(),
                            history_starts.data(), banned.data(), banned_starts.data(),
                            at<uint32_t>(masks), mask_rows.data(), forced.data()};
  int32_t* token_data = tokens.mutable_data();
  float* logprob_data = logprobs.mutable_data();
  {
    py::gil_scoped_release release;
    sample(batch, token_data, logprob_data);
  }
  return py::make_tuple(std::move(tokens), std::move(logprobs));
}

int64_t add_request(Scheduler& self, Array<int32_t> prompt, int32_t n, float temperature,
                    int32_t top_k, float top_p, float min_p, float repetition_penalty,
                    int32_t max_tokens, int32_t min_tokens, bool ignore_eos, uint64_t seed,
                    std::vector<int32_t> stop_token_ids, std::vector<std::string> stops,
                    int32_t mask, int32_t read_from, int32_t kind, int32_t score_table) {
  RequestParams params{n, top_k, max_tokens, min_tokens, temperature, top_p, min_p,
                       repetition_penalty, ignore_eos, seed, std::move(stop_token_ids),
                       std::move(stops), mask, read_from, kind, score_table};
  return self.add({prompt.data(), prompt.data() + prompt.size()}, std::move(params));
}

// [(token_ids, logprobs, "stop" or "length", byte of the text where a stop string began or -1)].
py::list take_results(Scheduler& self, int64_t id) {
  py::list out;
  for (const SampleResult& result : self.take_results(id))
    out.append(py::make_tuple(
        Array<int32_t>(static_cast<py::ssize_t>(result.token_ids.size()), result.token_ids.data()),
        Array<float>(static_cast<py::ssize_t>(result.logprobs.size()), result.logprobs.data()),
        result.finish == Finish::kStop ? "stop" : "length", result.cut));
  return out;
}

void accept(Scheduler& self, Array<int32_t> token_ids, Array<float> logprobs) {
  if (token_ids.size() != logprobs.size())
    throw std::invalid_argument("accept: wanted as many logprobs as token_ids");
  const int32_t* ids = token_ids.data();
  const float* values = logprobs.data();
  const int64_t count = token_ids.size();
  py::gil_scoped_release release;
  self.accept(ids, values, count);
}

void bind_scheduler(py::module_& m) {
  py::class_<Scheduler>(m, "Scheduler")
      .def(py::init([](int32_t num_pages, int32_t page_tokens, int32_t max_batch_tokens,
                       int32_t max_sequences, int32_t max_positions,
                       std::vector<int32_t> eos_token_ids) {
             return std::make_unique<Scheduler>(
                 SchedulerConfig{num_pages, page_tokens, max_batch_tokens, max_sequences,
                                 max_positions, std::move(eos_token_ids)});
           }),
           py::arg("num_pages"), py::arg("page_tokens"), py::arg("max_batch_tokens"),
           py::arg("max_sequences"), py::arg("max_positions"), py::arg("eos_token_ids"))
      .def("set_token_bytes",
           [](Scheduler& self, const std::vector<py::bytes>& table) {
             std::string bytes;
             std::vector<int64_t> starts{0};
             for (const py::bytes& entry : table) {
               bytes += static_cast<std::string>(entry);
               starts.push_back(static_cast<int64_t>(bytes.size()));
             }
             self.set_token_bytes(std::move(bytes), std::move(starts));
           })
      .def("add_score_table",
           [](Scheduler& self, Array<int32_t> token_maps, Array<int32_t> maps, int32_t start) {
             if (maps.ndim() != 2) throw std::invalid_argument("add_score_table: wanted [M, S]");
             return self.add_score_table({token_maps.data(), token_maps.data() + token_maps.size()},
                                         {maps.data(), maps.data() + maps.size()}, maps.shape(1),
                                         start);
           })
      .def("set_weights_version", &Scheduler::set_weights_version)
      .def("add", &add_request, py::arg("prompt"), py::arg("n"), py::arg("temperature"),
           py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("repetition_penalty"),
           py::arg("max_tokens"), py::arg("min_tokens"), py::arg("ignore_eos"), py::arg("seed"),
           py::arg("stop_token_ids"), py::arg("stops"), py::arg("mask") = -1,
           py::arg("read_from") = -1, py::arg("kind") = kSample, py::arg("score_table") = -1)
      .def("plan", &Scheduler::plan, py::call_guard<py::gil_scoped_release>())
      .def("accept", &accept)
      .def("take_finished", &Scheduler::take_finished)
      .def("take_results", &take_results)
      .def("reset", &Scheduler::reset)
      .def("page_refs", [](const Scheduler& self, int32_t page) { return self.pool().refs(page); })
      .def_property_readonly("num_free_pages",
                             [](const Scheduler& self) { return self.pool().num_free(); })
      .def_property_readonly("num_cached_pages", &Scheduler::num_cached)
      .def_property_readonly("num_running", &Scheduler::num_running)
      .def_property_readonly("num_in_flight", &Scheduler::num_in_flight)
      .def_property_readonly("num_waiting", &Scheduler::num_waiting)
      .def_readonly("prefill_tokens", &Scheduler::prefill_tokens)
      .def_readonly("cached_tokens", &Scheduler::cached_tokens)
      .def_readonly("generated_tokens", &Scheduler::generated_tokens)
      .def_readonly("preemptions", &Scheduler::preemptions)
      .def_property_readonly("token_ids", plan_view<&Plan::token_ids>())
      .def_property_readonly("positions", plan_view<&Plan::positions>())
      .def_property_readonly("slots", plan_view<&Plan::slots>())
      .def_property_readonly("row_starts", plan_view<&Plan::row_starts>())
      .def_property_readonly("context_lengths", plan_view<&Plan::context_lengths>())
      .def_property_readonly("block_table",
                             [](py::object self) {
                               const Plan& plan = self.cast<Scheduler&>().current();
                               return view(plan.block_table, self,
                                           {static_cast<py::ssize_t>(plan.context_lengths.size()),
                                            static_cast<py::ssize_t>(plan.width)});
                             })
      .def_property_readonly("copies",
                             [](py::object self) {
                               const Plan& plan = self.cast<Scheduler&>().current();
                               return view(plan.copies, self,
                                           {static_cast<py::ssize_t>(plan.copies.size() / 2), 2});
                             })
      .def_property_readonly("logit_rows", plan_view<&Plan::logit_rows>())
      .def_property_readonly("sample_rows", plan_view<&Plan::sample_rows>())
      .def_property_readonly("temperature", plan_view<&Plan::temperature>())
      .def_property_readonly("top_k", plan_view<&Plan::top_k>())
      .def_property_readonly("top_p", plan_view<&Plan::top_p>())
      .def_property_readonly("min_p", plan_view<&Plan::min_p>())
      .def_property_readonly("repetition_penalty", plan_view<&Plan::repetition_penalty>())
      .def_property_readonly("noise_keys", plan_view<&Plan::noise_keys>())
      .def_property_readonly("sample_positions", plan_view<&Plan::sample_positions>())
      .def_property_readonly("history", plan_view<&Plan::history>())
      .def_property_readonly("history_starts", plan_view<&Plan::history_starts>())
      .def_property_readonly("banned", plan_view<&Plan::banned>())
      .def_property_readonly("banned_starts", plan_view<&Plan::banned_starts>())
      .def_property_readonly("mask_rows", plan_view<&Plan::mask_rows>())
      .def_property_readonly("forced", plan_view<&Plan::forced>())
      .def_property_readonly("hidden_rows", plan_view<&Plan::hidden_rows>())
      .def_property_readonly("hidden_ids", plan_view<&Plan::hidden_ids>())
      .def_property_readonly("hidden_positions", plan_view<&Plan::hidden_positions>());
}

void bind_kernels(py::module_& m) {
  py::class_<PagedBatchView>(m, "PagedBatch")
      .def(py::init([](Array<int64_t> slots, Array<int32_t> row_starts,
                       Array<int32_t> context_lengths, Array<int32_t> block_table,
                       const ShapeArguments& shape) {
        return std::make_unique<PagedBatchView>(std::move(slots), std::move(row_starts),
                                                std::move(context_lengths),
                                                std::move(block_table), page_shape(shape));
      }))
      .def("attend", &PagedBatchView::attend);
  py::class_<Decoder>(m, "Decoder")
      .def(py::init(&make_decoder))
      .def("add_layer", &add_layer)
      .def("forward", &decoder_forward)
      .def("head", &decoder_head);
  m.def("linear", &linear);
  m.def("ask_for_huge_pages",
        [](uintptr_t memory, size_t bytes) { ask_for_huge_pages(at<void>(memory), bytes); });
  m.def("isa", &isa_name);
  m.def("isas", &isa_names);
  m.def("set_isa", &set_isa);
  m.def("logit_exponentials", &exponentials);
  m.def("logit_slopes", &slopes);
  m.def("add_scaled_rows", [](uintptr_t part, bool is_bf16, uintptr_t scale, int64_t rows,
                              int64_t width, uintptr_t acc) {
    py::gil_scoped_release release;
    add_scaled_rows(at<void>(part), is_bf16, at<float>(scale), rows, width, at<float>(acc));
  });
  m.def("scale_rows", [](uintptr_t x, bool is_bf16, uintptr_t scale, int64_t rows, int64_t width,
                         uintptr_t out) {
    py::gil_scoped_release release;
    scale_rows(at<void>(x), is_bf16, at<float>(scale), rows, width, at<void>(out));
  });
  m.def("sample", &sample_tokens);
  m.def("noise_uniform", &noise_uniform);
  m.def("noise_key", &noise_key);
}

// rows, heads, kv_heads, width, is_bf16, scale, window
using AttentionArguments = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, float, int64_t>;
using HeadRowArguments = std::tuple<uintptr_t, int64_t, int64_t>;  // data, row, head strides

AttentionShape attention_shape(const AttentionArguments& arguments) {
  const auto& [rows, heads, kv_heads, width, is_bf16, scale, window] = arguments;
  return {rows, heads, kv_heads, width, is_bf16, scale, window};
}

HeadRows head_rows(const HeadRowArguments& arguments) {
  const auto& [data, row, head] = arguments;
  return {at<void>(data), row, head};
}

Segmentation segmentation(const Array<int64_t>& lengths, const Array<int64_t>& parents) {
  if (lengths.size() != parents.size())
    throw std::invalid_argument("segments: wanted as many parents as lengths");
  return {lengths.data(), parents.data(), lengths.size()};
}

void attend_segments(const AttentionArguments& shape, Array<int64_t> lengths,
                     Array<int64_t> parents, const HeadRowArguments& q, const HeadRowArguments& k,
                     const HeadRowArguments& v, uintptr_t out, uintptr_t lse) {
  const Segmentation segments = segmentation(lengths, parents);
  py::gil_scoped_release release;
  segment_attention(attention_shape(shape), segments, head_rows(q), head_rows(k), head_rows(v),
                    at<void>(out), at<float>(lse));
}

void attend_segments_backward(const AttentionArguments& shape, Array<int64_t> lengths,
                              Array<int64_t> parents, const HeadRowArguments& q,
                              const HeadRowArguments& k, const HeadRowArguments& v,
                              const HeadRowArguments& out, const HeadRowArguments& grad,
                              uintptr_t lse, uintptr_t dq, uintptr_t dk, uintptr_t dv) {
  const Segmentation segments = segmentation(lengths, parents);
  py::gil_scoped_release release;
  segment_attention_backward(attention_shape(shape), segments, head_rows(q), head_rows(k),
                             head_rows(v), head_rows(out), head_rows(grad), at<float>(lse),
                             at<void>(dq), at<void>(dk), at<void>(dv));
}

void bind_attention(py::module_& m) {
  m.def("segment_attention", &attend_segments);
  m.def("segment_attention_backward", &attend_segments_backward);
}

using RowsArguments = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;
using ShapeOfRows = std::tuple<int64_t, int64_t, bool>;  // rows, width, is_bf16
using AngleArguments = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, bool>;

Rows rows_of(const RowsArguments& arguments) {
  const auto& [data, inner, outer_stride, inner_stride] = arguments;
  return {at<void>(data), inner, outer_stride, inner_stride};
}

RowsShape rows_shape(const ShapeOfRows& shape) {
  const auto& [rows, width, is_bf16] = shape;
  return {rows, width, is_bf16};
}

void bind_training(py::module_& m) {
  m.def("rms_norm_forward", [](const ShapeOfRows& shape, const RowsArguments& x,
                               const RowsArguments& residual, uintptr_t weight, float eps,
                               uintptr_t y, uintptr_t total, uintptr_t scales) {
    py::gil_scoped_release release;
    rms_norm_forward(rows_shape(shape), rows_of(x), rows_of(residual), at<void>(weight), eps,
                     at<void>(y), at<void>(total), at<float>(scales));
  });
  m.def("rms_norm_backward", [](const ShapeOfRows& shape, const RowsArguments& grad,
                                const RowsArguments& grad_total, const RowsArguments& x,
                                uintptr_t weight, uintptr_t scales, uintptr_t out,
                                uintptr_t grad_weight) {
    py::gil_scoped_release release;
    rms_norm_backward(rows_shape(shape), rows_of(grad), rows_of(grad_total), rows_of(x),
                      at<void>(weight), at<float>(scales), at<void>(out), at<float>(grad_weight));
  });
  m.def("turn_heads", [](const HeadRowArguments& x, const HeadRowArguments& y, bool is_bf16,
                         int64_t rows, int64_t heads, int64_t head_dim,
                         const AngleArguments& angles, bool back) {
    const auto& [cosines, sines, cosine_stride, sine_stride, are_bf16] = angles;
    const Angles turns{at<void>(cosines), at<void>(sines), cosine_stride, sine_stride, are_bf16};
    py::gil_scoped_release release;
    turn_heads(head_rows(x), head_rows(y), is_bf16, rows, heads, head_dim, turns, back);
  });
  m.def("sum_of_squares", [](uintptr_t x, bool is_bf16, int64_t count) {
    py::gil_scoped_release release;
    return sum_of_squares(at<void>(x), is_bf16, count);
  });
  m.def("transpose", [](uintptr_t x, int64_t rows, int64_t width, int64_t stride, uintptr_t out) {
    py::gil_scoped_release release;
    transpose(at<uint16_t>(x), rows, width, stride, at<uint16_t>(out));
  });
  m.def("swiglu_forward", [](const ShapeOfRows& shape, uintptr_t gate_up, int64_t stride,
                             uintptr_t y) {
    py::gil_scoped_release release;
    swiglu_forward(rows_shape(shape), at<void>(gate_up), stride, at<void>(y));
  });
  m.def("swiglu_backward", [](const ShapeOfRows& shape, uintptr_t grad, int64_t grad_stride,
                              uintptr_t gate_up, int64_t stride, uintptr_t out) {
    py::gil_scoped_release release;
    swiglu_backward(rows_shape(shape), at<void>(grad), grad_stride, at<void>(gate_up), stride,
                    at<void>(out));
  });
}

Array<double> best_in_index(const TextIndex& self, Array<int32_t> ids, Array<int64_t> starts,
                            double least, bool in_order) {
  const int64_t count = std::max<int64_t>(starts.size() - 1, 0);
  for (int64_t i = 0; i < count; ++i)
    if (starts.data()[i] < 0 || starts.data()[i] > starts.data()[i + 1])
      throw std::invalid_argument("starts: wanted offsets that never fall");
  if (count > 0 && starts.data()[count] > ids.size())
    throw std::invalid_argument("starts: the last one is beyond the ids");
  Array<double> found(count);
  double* out = found.mutable_data();
  const int32_t* words = ids.data();
  const int64_t* offsets = starts.data();
  py::gil_scoped_release release;
  self.best(words, offsets, count, least, in_order, out);
  return found;
}

void bind_text(py::module_& m) {
  m.def("extract_scores", [](uintptr_t ids, int64_t stride, bool is_64, uintptr_t lengths,
                             uintptr_t finished, int64_t rows, uintptr_t token_maps, int64_t vocab,
                             uintptr_t maps, int64_t states, uintptr_t ends, int32_t start,
                             int32_t low, uintptr_t scores, uintptr_t status) {
    const ScoreTableView table{at<int32_t>(token_maps), vocab, at<int32_t>(maps), states,
                               at<int32_t>(ends), start, low};
    const auto *length = at<int64_t>(lengths);
    const auto *done = at<bool>(finished);
    py::gil_scoped_release release;
    if (is_64)
      extract_scores(at<int64_t>(ids), stride, length, done, rows, table, at<float>(scores),
                     at<int32_t>(status));
    else
      extract_scores(at<int32_t>(ids), stride, length, done, rows, table, at<float>(scores),
                     at<int32_t>(status));
  });
  py::class_<TextIndex>(m, "TextIndex")
      .def(py::init<>())
      .def("__len__", &TextIndex::size)
      .def("add",
           [](TextIndex& self, Array<int32_t> ids) {
             for (int64_t i = 0; i < ids.size(); ++i)
               if (ids.data()[i] < 0) throw std::invalid_argument("ids: wanted none below 0");
             self.add(ids.data(), ids.size());
           },
           py::arg("ids"))
      .def("best", &best_in_index, py::arg("ids"), py::arg("starts"), py::arg("least"),
           py::arg("in_order"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Pages, scheduling, attention and sampling on a CPU; see srlm_fast/sampler.";
  bind_scheduler(m);
  bind_kernels(m);
  bind_attention(m);
  bind_training(m);
  bind_text(m);
}
