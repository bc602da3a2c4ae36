// Mixing of 64-bit words: page keys, prompt identities and the sampling noise all come from here.
#pragma once

#include <cstdint>

namespace srlm {

// The splitmix64 step (Steele, Lea, Flood 2014): a bijection with full avalanche.
inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

inline uint64_t hash_tokens(uint64_t start, const int32_t* tokens, int64_t count) {
  uint64_t h = mix64(start ^ static_cast<uint64_t>(count));
  for (int64_t i = 0; i < count; ++i) h = mix64(h ^ static_cast<uint32_t>(tokens[i]));
  return h;
}

// The noise of one sample: depends on nothing but these three, so not on its neighbours.
inline uint64_t noise_key(uint64_t seed, uint64_t prompt_hash, uint64_t sample) {
  return mix64(mix64(seed ^ 0x5851f42d4c957f2dull) ^ prompt_hash ^ mix64(sample));
}

// Uniform in [0, 1) with 53 bits for the token at `position`.
inline double noise_uniform(uint64_t key, uint64_t position) {
  return static_cast<double>(mix64(key ^ mix64(position)) >> 11) * 0x1.0p-53;
}

}  // namespace srlm
