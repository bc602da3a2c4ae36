#include "scheduler.hpp"

#include <algorithm>
#include <stdexcept>

namespace srlm {

void Plan::clear() {
  for (auto* v : {&token_ids, &positions, &slots, &logit_rows, &sample_rows, &sample_positions,
                  &hidden_rows, &hidden_ids, &hidden_positions})
    v->clear();
  for (auto* v : {&context_lengths, &block_table, &copies, &top_k, &history, &banned, &mask_rows,
                  &forced})
    v->clear();
  for (auto* v : {&row_starts, &history_starts, &banned_starts}) v->assign(1, 0);
  for (auto* v : {&temperature, &top_p, &min_p, &repetition_penalty}) v->clear();
  noise_keys.clear();
  width = 0;
}

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config), pool_(config.num_pages), cache_(config.num_pages, config.page_tokens) {
  plan_.clear();
}

void Scheduler::set_token_bytes(std::string bytes, std::vector<int64_t> starts) {
  token_bytes_ = TokenBytes{std::move(bytes), std::move(starts)};
}

int32_t Scheduler::add_score_table(std::vector<int32_t> token_maps, std::vector<int32_t> maps,
                                   int64_t states, int32_t start) {
  OwnedTable& own = score_tables_.emplace_back();
  own.token_maps = std::move(token_maps);
  own.maps = std::move(maps);
  own.view = {own.token_maps.data(), static_cast<int64_t>(own.token_maps.size()), own.maps.data(),
              states, nullptr, start, 0};
  return static_cast<int32_t>(score_tables_.size()) - 1;
}

// Pages computed by other weights are forgotten at once; the version in every key says it again.
void Scheduler::set_weights_version(int64_t version) {
  if (version == version_) return;
  if (!running_.empty() || !waiting_.empty())
    throw std::logic_error("the weights changed while requests were running");
  version_ = version;
  cache_.clear();
}

int64_t Scheduler::add(std::vector<int32_t> prompt, RequestParams params) {
  const int32_t more = params.kind == kSample ? std::max(params.max_tokens, 1) : 1;
  const int64_t longest =
      std::min<int64_t>(static_cast<int64_t>(prompt.size()) + more - 1, config_.max_positions);
  if (pages_for(longest) > config_.num_pages)
    throw std::invalid_argument(
        "prompt: " + std::to_string(prompt.size()) + " tokens and max_tokens " +
        std::to_string(params.max_tokens) + " need " + std::to_string(pages_for(longest)) +
        " pages, and the KV pool has " + std::to_string(config_.num_pages) +
        "; wanted a shorter request or a larger kv_bytes");
  auto request = std::make_shared<Request>();
  request->id = next_id_++;
  request->prompt_hash = hash_tokens(0, prompt.data(), static_cast<int64_t>(prompt.size()));
  if (params.min_tokens > 0) {
    request->banned = params.stop_token_ids;
    if (!params.ignore_eos)
      request->banned.insert(request->banned.end(), config_.eos_token_ids.begin(),
                             config_.eos_token_ids.end());
  }
  request->results.resize(params.n);
  request->unfinished = params.n;
  request->params = std::move(params);
  auto sequence = std::make_shared<Sequence>();
  sequence->tokens = prompt;
  if (request->params.kind == kScore) {  // the last token is scored by the row before it
    request->targets.assign(prompt.begin() + request->params.read_from + 1, prompt.end());
    sequence->tokens.pop_back();
  }
  request->prompt = std::move(prompt);
  sequence->request = request;
  requests_[request->id] = request;
  waiting_.push_back(sequence);
  return request->id;
}

// ---------------------------------------------------------------------------------------- plan

bool Scheduler::plan() {
  if (in_flight_.size() > 1)
    throw std::logic_error("plan: two steps are in flight; wanted accept first");
  plan_.clear();
  scheduled_.clear();
  in_flight_.emplace_back();
  ++step_;
  int32_t budget = config_.max_batch_tokens;
  plan_decodes(budget);
  plan_prefills(budget);
  admit(budget);
  finish_plan();
  if (scheduled_.empty()) in_flight_.pop_back();
  return !scheduled_.empty();
}

// Running samples first, so that a long prompt never holds them up.
void Scheduler::plan_decodes(int32_t& budget) {
  // A pre-emption removes from the end of running_, never before the sequence that asked; the
  // samples of a prompt that ends here come in behind it, already in this step.
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    const SequencePtr sequence = running_[i];
    if (sequence->remaining() != 1 || sequence->closed || sequence->step == step_) continue;
    if (sequence->waits_for_token() || !make_writable(sequence)) continue;
    schedule(sequence, 1);
    --budget;
  }
}

// Then prompts that were cut by the budget; their pages were taken when they were admitted.
void Scheduler::plan_prefills(int32_t& budget) {
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    const SequencePtr sequence = running_[i];
    if (sequence->remaining() <= 1 || sequence->step == step_) continue;
    const int32_t count = chunk(*sequence, budget);
    schedule(sequence, count);
    budget -= count;
  }
}

void Scheduler::admit(int32_t& budget) {
  while (!waiting_.empty() && budget > 0 && admit_first()) {
    const SequencePtr sequence = waiting_.front();
    waiting_.pop_front();
    const auto place = std::upper_bound(
        running_.begin(), running_.end(), sequence,
        [](const SequencePtr& a, const SequencePtr& b) { return a->before(*b); });
    running_.insert(place, sequence);
    const int32_t count = chunk(*sequence, budget);
    schedule(sequence, count);
    budget -= count;
  }
}

// Tokens of a prompt in this step: at most half of it while others wait.
int32_t Scheduler::chunk(const Sequence& sequence, int32_t budget) const {
  const int32_t half = (config_.max_batch_tokens + 1) / 2;
  return std::min(sequence.remaining(), waiting_.empty() ? budget : std::min(budget, half));
}

int64_t Scheduler::load() const {
  int64_t total = 0;
  for (const SequencePtr& sequence : running_) total += sequence->weight();
  return total;
}

// Gives the first waiting sequence its pages, cached ones first. Each running sample keeps one
// page in reserve, or admission and pre-emption would chase each other.
bool Scheduler::admit_first() {
  Sequence& sequence = *waiting_.front();
  const int64_t busy = load() + sequence.weight();
  if (!running_.empty() && busy > config_.max_sequences) return false;
  if (sequence.waits_for_token()) return false;
  const std::vector<int32_t> hits = find_prefix(sequence);
  const int32_t needed =
      pages_for(static_cast<int64_t>(sequence.tokens.size())) - static_cast<int32_t>(hits.size());
  int32_t free_after = pool_.num_free() - needed;
  for (const int32_t page : hits) free_after -= pool_.refs(page) == 0;
  if (!running_.empty() && free_after < busy) return false;
  for (const int32_t page : hits) pool_.share(page);
  sequence.pages = hits;
  for (int32_t i = 0; i < needed; ++i) sequence.pages.push_back(take_page());
  sequence.registered = static_cast<int32_t>(hits.size());
  sequence.computed = sequence.registered * config_.page_tokens;
  cached_tokens += sequence.computed;
  return true;
}

// Cached pages at the head of a sequence. Rows that are wanted are always computed anew: the last
// one of a sample, those that a request reads.
std::vector<int32_t> Scheduler::find_prefix(Sequence& sequence) {
  std::vector<int32_t> hits;
  const int32_t read_from = sequence.request->params.read_from;
  const int32_t last = static_cast<int32_t>(sequence.tokens.size()) - 1;
  const int32_t most = (read_from < 0 ? last : read_from) / config_.page_tokens;
  extend_keys(sequence, most);
  for (int32_t i = 0; i < most; ++i) {
    const int32_t page =
        cache_.find(sequence.keys[i], &sequence.tokens[int64_t(i) * config_.page_tokens]);
    if (page < 0) break;
    hits.push_back(page);
  }
  return hits;
}

void Scheduler::extend_keys(Sequence& sequence, int32_t pages) {
  while (static_cast<int32_t>(sequence.keys.size()) < pages) {
    const uint64_t parent =
        sequence.keys.empty() ? PrefixCache::root(version_) : sequence.keys.back();
    const int64_t start = static_cast<int64_t>(sequence.keys.size()) * config_.page_tokens;
    sequence.keys.push_back(cache_.extend(parent, &sequence.tokens[start]));
  }
}

// Puts the next `count` tokens of a sequence into the step. Pages that become full are offered to
// the cache now, before they are written: every row of a step writes its keys before any row
// attends, so a later sequence of this same step may already use them.
void Scheduler::schedule(const SequencePtr& sequence, int32_t count) {
  Sequence& s = *sequence;
  const int32_t page_tokens = config_.page_tokens;
  const int32_t start = s.computed, end = start + count;
  for (int32_t position = start; position < end; ++position) {
    plan_.token_ids.push_back(s.tokens[position]);
    plan_.positions.push_back(position);
    plan_.slots.push_back(int64_t(s.pages[position / page_tokens]) * page_tokens +
                          position % page_tokens);
  }
  s.computed = end;
  s.step = step_;
  const int32_t full = std::min(end, s.known()) / page_tokens;
  extend_keys(s, full);
  for (; s.registered < full; ++s.registered)
    cache_.insert(s.keys[s.registered], &s.tokens[int64_t(s.registered) * page_tokens],
                  s.pages[s.registered]);
  plan_.row_starts.push_back(static_cast<int32_t>(plan_.token_ids.size()));
  plan_.context_lengths.push_back(end);
  plan_.width = std::max<int64_t>(plan_.width, pages_for(end));
  if (count > 1 || !s.forked) prefill_tokens += count;
  scheduled_.push_back(sequence);
  if (s.request->params.kind != kSample) {
    read_rows(sequence, start);
  } else if (end == static_cast<int32_t>(s.tokens.size())) {
    draw(sequence);
  }
}

// The rows of this step that a kScore or kHidden request reads.
void Scheduler::read_rows(const SequencePtr& sequence, int32_t start) {
  Sequence& s = *sequence;
  const RequestParams& params = s.request->params;
  const int64_t first = static_cast<int64_t>(plan_.token_ids.size()) - s.computed;
  for (int32_t p = std::max(start, params.read_from); p < s.computed; ++p) {
    if (params.kind == kHidden) {
      plan_.hidden_rows.push_back(first + p);
      plan_.hidden_ids.push_back(s.request->id);
      plan_.hidden_positions.push_back(p);
      continue;
    }
    plan_.logit_rows.push_back(first + p);
    const int32_t index = p - params.read_from;
    add_sampling_row(sequence, index, s.request->targets[index]);
  }
  if (s.remaining() > 0) return;
  s.closed = true;
  if (params.kind == kHidden) in_flight_.back().ends.push_back(sequence);
}

// Sampling rows under the last row; all samples of the request when the prompt is done.
void Scheduler::draw(const SequencePtr& sequence) {
  plan_.logit_rows.push_back(static_cast<int64_t>(plan_.token_ids.size()) - 1);
  const std::vector<SequencePtr> samples =
      sequence->forked ? std::vector<SequencePtr>{sequence} : fork(sequence);
  for (const SequencePtr& sample : samples) {
    const Request& request = *sample->request;
    const int32_t index = static_cast<int32_t>(sample->tokens.size() - request.prompt.size());
    add_sampling_row(sample, index, -1);
    sample->tokens.push_back(-static_cast<int32_t>(plan_.sample_rows.size()));
    sample->closed = index + 1 >= request.params.max_tokens ||
                     static_cast<int32_t>(sample->tokens.size()) >= config_.max_positions;
  }
}

void Scheduler::add_sampling_row(const SequencePtr& sequence, int32_t index, int32_t forced) {
  const Sequence& s = *sequence;
  const RequestParams& params = s.request->params;
  in_flight_.back().owners.push_back({sequence, index});
  plan_.sample_rows.push_back(static_cast<int64_t>(plan_.logit_rows.size()) - 1);
  plan_.temperature.push_back(params.temperature);
  plan_.top_k.push_back(params.top_k);
  plan_.top_p.push_back(params.top_p);
  plan_.min_p.push_back(params.min_p);
  plan_.repetition_penalty.push_back(params.repetition_penalty);
  plan_.noise_keys.push_back(noise_key(params.seed, s.request->prompt_hash, s.sample));
  plan_.sample_positions.push_back(static_cast<int64_t>(s.tokens.size()));
  if (params.repetition_penalty != 1.0f)
    plan_.history.insert(plan_.history.end(), s.tokens.begin(), s.tokens.end());
  plan_.history_starts.push_back(static_cast<int32_t>(plan_.history.size()));
  plan_.mask_rows.push_back(params.mask);
  plan_.forced.push_back(forced);
  if (index < params.min_tokens)
    plan_.banned.insert(plan_.banned.end(), s.request->banned.begin(), s.request->banned.end());
  plan_.banned_starts.push_back(static_cast<int32_t>(plan_.banned.size()));
}

void Scheduler::finish_plan() {
  plan_.block_table.assign(scheduled_.size() * plan_.width, 0);
  for (size_t i = 0; i < scheduled_.size(); ++i) {
    const int32_t used = pages_for(plan_.context_lengths[i]);
    std::copy_n(scheduled_[i]->pages.begin(), used, plan_.block_table.begin() + i * plan_.width);
  }
}

// --------------------------------------------------------------------------------------- pages

int32_t Scheduler::take_page() {
  const int32_t page = pool_.take();
  cache_.forget(page);
  return page;
}

// The page of the next token, owned by this sequence alone. A shared tail page is copied.
bool Scheduler::make_writable(const SequencePtr& sequence) {
  const size_t index = sequence->computed / config_.page_tokens;
  const bool append = index == sequence->pages.size();
  while (append || pool_.refs(sequence->pages[index]) > 1) {
    if (pool_.num_free() == 0) {
      if (!free_one_page(sequence)) return false;
      continue;  // a freed sibling may have left the tail page to us
    }
    const int32_t page = take_page();
    if (append) {
      sequence->pages.push_back(page);
      return true;
    }
    const int32_t shared = sequence->pages[index];
    plan_.copies.insert(plan_.copies.end(), {shared, page});
    pool_.release(shared, cache_.knows(shared));
    sequence->pages[index] = page;
  }
  return true;
}

// Takes the pages of the youngest running sequence. False when that is the one that asked.
bool Scheduler::free_one_page(const SequencePtr& wanting) {
  const SequencePtr youngest = running_.back();
  preempt(youngest);
  return youngest != wanting;
}

// Its tokens stay and are computed again later, mostly from pages that the cache still knows. One
// that only waits for its last token needs no pages any more, and no second turn.
void Scheduler::preempt(SequencePtr sequence) {
  release_pages(*sequence);
  running_.erase(std::find(running_.begin(), running_.end(), sequence));
  if (sequence->closed) return;
  const auto place = std::upper_bound(
      waiting_.begin(), waiting_.end(), sequence,
      [](const SequencePtr& a, const SequencePtr& b) { return a->before(*b); });
  waiting_.insert(place, std::move(sequence));
  ++preemptions;
}

// The last page first: a page is of use only while all pages before it are there.
void Scheduler::release_pages(Sequence& sequence) {
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page)
    pool_.release(*page, cache_.knows(*page));
  sequence.pages.clear();
  sequence.computed = sequence.registered = 0;
}

// -------------------------------------------------------------------------------------- accept

void Scheduler::accept(const int32_t* token_ids, const float* logprobs, int64_t count) {
  const int64_t wanted =
      in_flight_.empty() ? 0 : static_cast<int64_t>(in_flight_.front().owners.size());
  if (count != wanted)
    throw std::invalid_argument("accept: wanted one token for each sampling row of the plan");
  if (in_flight_.empty()) return;
  const Step step = std::move(in_flight_.front());
  in_flight_.pop_front();
  for (const SequencePtr& sequence : step.ends) finish(*sequence, Finish::kLength, -1);
  for (int64_t i = 0; i < count; ++i) {
    Sequence& sequence = *step.owners[i].sequence;
    if (!sequence.finished) keep(sequence, step.owners[i].index, token_ids[i], logprobs[i]);
  }
  const auto done = [](const SequencePtr& s) { return s->finished; };
  running_.erase(std::remove_if(running_.begin(), running_.end(), done), running_.end());
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), done), waiting_.end());
}

// The samples of a finished prompt share all its pages; the first to write on the last one copies.
std::vector<SequencePtr> Scheduler::fork(const SequencePtr& leader) {
  leader->forked = true;
  std::vector<SequencePtr> samples{leader};
  for (int32_t sample = 1; sample < leader->request->params.n; ++sample) {
    auto copy = std::make_shared<Sequence>(*leader);
    copy->sample = sample;
    for (const int32_t page : copy->pages) pool_.share(page);
    samples.push_back(std::move(copy));
  }
  const auto place = std::find(running_.begin(), running_.end(), leader) + 1;
  running_.insert(place, samples.begin() + 1, samples.end());
  return samples;
}

// One row of the device. Those of a kScore request may come twice, after a pre-emption.
void Scheduler::keep(Sequence& sequence, int32_t index, int32_t token, float logprob) {
  const Request& request = *sequence.request;
  sequence.logprobs.resize(index);
  sequence.logprobs.push_back(logprob);
  if (request.params.kind == kScore) {
    if (sequence.logprobs.size() == request.targets.size()) finish(sequence, Finish::kLength, -1);
    return;
  }
  const size_t place = request.prompt.size() + index;
  sequence.tokens[place] = token;
  ++generated_tokens;
  int64_t cut = -1;
  const Finish reason = finish_of(sequence, token, cut);
  if (reason == Finish::kNone) return;
  sequence.tokens.resize(place + 1);  // the step in flight draws one more
  finish(sequence, reason, cut);
}

bool Scheduler::ends_score_line(Sequence& sequence, int32_t token) const {
  const ScoreTableView& table = score_tables_[sequence.request->params.score_table].view;
  if (sequence.score_state < 0) sequence.score_state = table.start;
  const int32_t entry = table.entry(token, sequence.score_state);
  const bool ends = (entry & table.kNumberLine) || (sequence.score_found && entry & table.kAnyLine);
  sequence.score_found |= (entry >> table.kOutcomeShift & table.kOutcomeMask) != 0;
  sequence.score_state = entry & table.kStateMask;
  return ends;
}

Finish Scheduler::finish_of(Sequence& sequence, int32_t token, int64_t& cut) {
  const RequestParams& params = sequence.request->params;
  const auto among = [token](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  const int32_t generated = static_cast<int32_t>(sequence.logprobs.size());
  if (!params.stops.empty()) {
    const size_t before = sequence.text.size();
    token_bytes_.append_to(sequence.text, token);
    if (generated >= params.min_tokens) cut = find_stop(params.stops, sequence.text, before);
    if (cut >= 0) return Finish::kStop;
  }
  const bool line = params.score_table >= 0 && ends_score_line(sequence, token);
  if (generated >= params.min_tokens) {
    if (line) return Finish::kStop;
    if (!params.ignore_eos && among(config_.eos_token_ids)) return Finish::kStop;
    if (among(params.stop_token_ids)) return Finish::kStop;
  }
  const bool full = static_cast<int64_t>(sequence.request->prompt.size()) + generated >=
                    config_.max_positions;
  return generated >= params.max_tokens || full ? Finish::kLength : Finish::kNone;
}

void Scheduler::finish(Sequence& sequence, Finish reason, int64_t cut) {
  release_pages(sequence);
  sequence.finished = true;
  Request& request = *sequence.request;
  if (request.params.kind != kHidden) {
    SampleResult& result = request.results[sequence.sample];
    const auto drawn = sequence.tokens.begin() + static_cast<int64_t>(request.prompt.size());
    if (request.params.kind == kScore) {
      result.token_ids = request.targets;
    } else {
      result.token_ids.assign(drawn, sequence.tokens.end());
    }
    result.logprobs = std::move(sequence.logprobs);
    result.finish = reason;
    result.cut = cut;
    --request.unfinished;
  }
  if (request.unfinished == 0) finished_.push_back(request.id);
}

std::vector<int64_t> Scheduler::take_finished() {
  std::vector<int64_t> out;
  out.swap(finished_);
  return out;
}

std::vector<SampleResult> Scheduler::take_results(int64_t id) {
  const auto found = requests_.find(id);
  if (found == requests_.end() || found->second->unfinished > 0)
    throw std::invalid_argument("take_results: no finished request with this id");
  std::vector<SampleResult> results = std::move(found->second->results);
  requests_.erase(found);
  return results;
}

void Scheduler::reset() {
  for (const SequencePtr& sequence : running_) release_pages(*sequence);
  running_.clear();
  waiting_.clear();
  scheduled_.clear();
  in_flight_.clear();
  requests_.clear();
  finished_.clear();
  cache_.clear();
  plan_.clear();
}

}  // namespace srlm
