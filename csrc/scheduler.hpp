// Continuous batching over pages: which tokens run in the next step, and where their keys go.
// srlm_fast/sampler/scheduler.py is the same text in Python, and the specification.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "block_pool.hpp"
#include "prefix_cache.hpp"
#include "score_table.hpp"
#include "stop_matcher.hpp"

namespace srlm {

struct SchedulerConfig {
  int32_t num_pages, page_tokens, max_batch_tokens, max_sequences, max_positions;
  std::vector<int32_t> eos_token_ids;
};

struct RequestParams {
  int32_t n, top_k, max_tokens, min_tokens;
  float temperature, top_p, min_p, repetition_penalty;
  bool ignore_eos;
  uint64_t seed;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stops;
  int32_t mask;       // of allowed tokens, -1 for none
  int32_t read_from;  // first position that a kScore or kHidden request reads, else -1
  int32_t kind;
  int32_t score_table;  // a sample ends with the first line that holds a score of it; -1 for none
};

// What a request asks for: samples, the log-probabilities of its own tokens behind position
// read_from, or the hidden rows from there on.
constexpr int32_t kSample = 0, kScore = 1, kHidden = 2;

enum class Finish : int32_t { kNone = 0, kStop = 1, kLength = 2 };

struct SampleResult {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
  Finish finish = Finish::kNone;
  int64_t cut = -1;  // byte of the text where the stop string begins that ended it
};

struct Request {
  int64_t id;
  std::vector<int32_t> prompt;
  RequestParams params;
  uint64_t prompt_hash;
  std::vector<int32_t> banned;   // until min_tokens: whatever would end the sample
  std::vector<int32_t> targets;  // kScore: the tokens behind read_from
  std::vector<SampleResult> results;
  int32_t unfinished;
};

// One sample of a request; before its prompt is done, the first one stands for all n of them.
// Its last token may be unknown yet: it is then -(1 + its sampling row in the step before).
struct Sequence {
  std::shared_ptr<Request> request;
  int32_t sample = 0;
  bool forked = false;
  std::vector<int32_t> tokens;  // prompt and what was sampled
  std::vector<float> logprobs;
  std::string text;             // bytes of what was sampled, kept when there are stop strings
  int32_t score_state = -1;     // of the score table behind what was sampled, -1 before it
  bool score_found = false;
  int32_t computed = 0;         // leading tokens whose keys and values stand in pages
  int64_t step = -1;            // in which it was last scheduled
  bool closed = false;          // no further row will be planned
  bool finished = false;
  int32_t registered = 0;       // leading pages that were offered to the prefix cache
  std::vector<int32_t> pages;
  std::vector<uint64_t> keys;   // chained key of each full page; kept over a pre-emption

  int32_t remaining() const { return static_cast<int32_t>(tokens.size()) - computed; }
  int32_t known() const { return static_cast<int32_t>(tokens.size()) - (tokens.back() < 0); }
  // The penalty looks at all tokens, so it cannot run ahead of them.
  bool waits_for_token() const {
    return request->params.repetition_penalty != 1.0f && tokens.back() < 0;
  }
  int32_t weight() const { return forked ? 1 : std::max(request->params.n, 1); }
  bool before(const Sequence& other) const {
    return request->id != other.request->id ? request->id < other.request->id
                                            : sample < other.sample;
  }
};
using SequencePtr = std::shared_ptr<Sequence>;

// One step. T rows of tokens belong to S sequences; U rows are wanted under the head, and N
// samples are drawn from them.
struct Plan {
  std::vector<int64_t> token_ids, positions, slots;      // [T]; slot = page * page_tokens + offset;
                                                         // a negative token is not known yet
  std::vector<int32_t> row_starts;                       // [S + 1]
  std::vector<int32_t> context_lengths;                  // [S] keys that the last row sees
  std::vector<int32_t> block_table;                      // [S, width]
  int64_t width = 0;
  std::vector<int32_t> copies;                           // [C, 2] pages: from, to
  std::vector<int64_t> logit_rows;                       // [U] rows of T
  std::vector<int64_t> sample_rows;                      // [N] rows of U
  std::vector<float> temperature, top_p, min_p, repetition_penalty;  // [N]
  std::vector<int32_t> top_k;                            // [N]
  std::vector<uint64_t> noise_keys;                      // [N]
  std::vector<int64_t> sample_positions;                 // [N] position of the token to be drawn
  std::vector<int32_t> history, history_starts;          // seen tokens of rows with a penalty
  std::vector<int32_t> banned, banned_starts;            // tokens that may not be drawn
  std::vector<int32_t> mask_rows, forced;                // [N] mask or -1; token to score or -1
  std::vector<int64_t> hidden_rows, hidden_ids, hidden_positions;  // rows of T wanted as they are
  void clear();
};

// Who owns a step's sampling rows, and which of its tokens each is; and the kHidden requests that
// end with the step.
struct Step {
  struct Owner {
    SequencePtr sequence;
    int32_t index;
  };
  std::vector<Owner> owners;
  std::vector<SequencePtr> ends;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  void set_token_bytes(std::string bytes, std::vector<int64_t> starts);
  int32_t add_score_table(std::vector<int32_t> token_maps, std::vector<int32_t> maps,
                          int64_t states, int32_t start);
  void set_weights_version(int64_t version);

  // Raises std::invalid_argument when the request can never fit.
  int64_t add(std::vector<int32_t> prompt, RequestParams params);
  // May run one step ahead of accept.
  bool plan();
  void accept(const int32_t* token_ids, const float* logprobs, int64_t count);
  std::vector<int64_t> take_finished();
  std::vector<SampleResult> take_results(int64_t id);
  void reset();  // drops every request and everything cached

  const Plan& current() const { return plan_; }
  const BlockPool& pool() const { return pool_; }
  int64_t num_cached() const { return cache_.size(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_in_flight() const { return static_cast<int64_t>(in_flight_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }

  int64_t prefill_tokens = 0, cached_tokens = 0, generated_tokens = 0, preemptions = 0;

 private:
  int32_t pages_for(int64_t tokens) const {
    return static_cast<int32_t>((tokens + config_.page_tokens - 1) / config_.page_tokens);
  }
  void plan_decodes(int32_t& budget);
  void plan_prefills(int32_t& budget);
  void admit(int32_t& budget);
  bool admit_first();
  int32_t chunk(const Sequence& sequence, int32_t budget) const;
  void schedule(const SequencePtr& sequence, int32_t count);
  void read_rows(const SequencePtr& sequence, int32_t start);
  void draw(const SequencePtr& sequence);
  void add_sampling_row(const SequencePtr& sequence, int32_t index, int32_t forced);
  void finish_plan();
  bool make_writable(const SequencePtr& sequence);
  bool free_one_page(const SequencePtr& wanting);
  int32_t take_page();
  void release_pages(Sequence& sequence);
  void preempt(SequencePtr sequence);
  void extend_keys(Sequence& sequence, int32_t pages);
  std::vector<int32_t> find_prefix(Sequence& sequence);
  int64_t load() const;
  std::vector<SequencePtr> fork(const SequencePtr& leader);
  void keep(Sequence& sequence, int32_t index, int32_t token, float logprob);
  bool ends_score_line(Sequence& sequence, int32_t token) const;
  Finish finish_of(Sequence& sequence, int32_t token, int64_t& cut);
  void finish(Sequence& sequence, Finish reason, int64_t cut);

  SchedulerConfig config_;
  BlockPool pool_;
  PrefixCache cache_;
  TokenBytes token_bytes_;
  struct OwnedTable {
    std::vector<int32_t> token_maps, maps;
    ScoreTableView view;
  };
  std::deque<OwnedTable> score_tables_;
  int64_t version_ = 0, next_id_ = 0, step_ = 0;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;    // in order of arrival
  std::vector<SequencePtr> scheduled_;  // this step's, in row order
  std::deque<Step> in_flight_;          // planned and not accepted, the last one is being planned
  std::unordered_map<int64_t, std::shared_ptr<Request>> requests_;
  std::vector<int64_t> finished_;
  Plan plan_;
};

}  // namespace srlm
