// Prefix beam search over CTC outputs, with an n-gram language model, a lexicon and bonuses of words.
//
// Exact early exits: what the living prefixes are worth after a frame is computed first; the worst of a full beam bounds
// what an extension must be worth, and bonuses are looked up only for extensions that can still reach it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace seqloom {
namespace {

constexpr double never = -1e300;  // ln 0; sums of what frames say do not change it
constexpr int32_t nowhere = -1;

double log_add(double a, double b) {
    const double high = std::max(a, b), difference = std::min(a, b) - high;
    return difference < -40 ? high : high + std::log1p(std::exp(difference));
}

// The arrays of prior.py, lexicon.py and ngram.py.
struct Prior {
    int32_t symbols, space;
    const int32_t *spelling, *letters;  // symbol -> where its letters begin
    const int32_t *first, *letter, *number;
    const double* word_bonus;
    int32_t strict;
    const int32_t *lm_first, *lm_word, *lm_link;  // lm_first is NULL without a language model
    const float *lm_log_prob, *lm_backoff;
    int32_t by_word, begin, end, unknown;
    const int32_t* letter_words;  // the space last
    int32_t letter_count;
    double alpha, beta, most_bonus;
};

struct Memory {
    double bonus;
    int32_t node, state;
    bool inside;
};

struct Node {
    Memory memory;
    int32_t parent, symbol, child, sibling;  // child is the newest one
    int32_t slot;                            // among the living, or nowhere
    bool ended = false;                      // whether `after` is what a space makes of it
    bool may_end = false;
    Memory after{};

    Node(const Memory& memory, int32_t parent, int32_t symbol, int32_t sibling)
        : memory(memory), parent(parent), symbol(symbol), child(nowhere), sibling(sibling), slot(0) {}
};

struct Alive {
    int32_t node;
    double blank, label, both;  // before the frame
    double next_blank, next_label, next_score;
};

struct Extension {
    int32_t parent, symbol, node;  // node: nowhere if it is new
    double label, score;
    Memory memory;
};

struct Search {
    Prior prior;
    int64_t beam, top_n;
    double cutoff;
    std::vector<Node> nodes;
    std::vector<Alive> alive, next;
    std::vector<Extension> pool;
    std::vector<int32_t> order;  // the frame's candidates, most probable first
    std::vector<uint8_t> considered;
    std::vector<double> scores;
    std::vector<std::pair<double, int64_t>> ranks;
    int64_t lookups = 0;
    size_t kept = 1;

    Search(const Prior& prior, int64_t beam, int64_t top_n, double cutoff)
        : prior(prior), beam(beam), top_n(top_n), cutoff(cutoff), considered(size_t(prior.symbols)) {
        nodes.emplace_back(Memory{0.0, 0, prior.lm_first ? prior.begin : 0, false}, nowhere, 0, nowhere);
        alive.push_back({0, 0.0, never, 0.0, 0, 0, 0});
    }

    double advance(int32_t& state, int32_t word) {
        ++lookups;
        double total = 0;
        for (;;) {
            const int32_t* begin = prior.lm_word + prior.lm_first[state];
            const int32_t* end = prior.lm_word + prior.lm_first[state + 1];
            const int32_t* at = std::lower_bound(begin, end, word);
            if (at != end && *at == word) {
                state = int32_t(at - prior.lm_word);
                return prior.alpha * (total + prior.lm_log_prob[state]);
            }
            total += prior.lm_backoff[state];
            state = prior.lm_link[state];
        }
    }

    int32_t step(int32_t node, int32_t letter) const {
        if (node == nowhere) return nowhere;
        const int32_t* begin = prior.letter + prior.first[node];
        const int32_t* end = prior.letter + prior.first[node + 1];
        const int32_t* at = std::lower_bound(begin, end, letter);
        return at != end && *at == letter ? int32_t(at - prior.letter) : nowhere;
    }

    bool end_word(const Memory& before, Memory& after) {
        after = {before.bonus, 0, before.state, false};
        const int32_t number = before.node == nowhere ? nowhere : prior.number[before.node];
        if (number != nowhere)
            after.bonus += prior.word_bonus[before.node];
        else if (prior.strict)
            return false;
        if (prior.lm_first && prior.by_word)
            after.bonus += advance(after.state, number == nowhere ? prior.unknown : number) + prior.beta;
        return true;
    }

    bool extend(int32_t at, int32_t symbol, Memory& after) {
        Node& node = nodes[at];
        after = node.memory;
        if (symbol == prior.space) {
            if (!after.inside) return true;
            if (!node.ended) {  // once for as long as the prefix is known
                node.may_end = end_word(node.memory, node.after);
                node.ended = true;
            }
            after = node.after;
            return node.may_end;
        }
        for (int32_t i = prior.spelling[symbol]; i < prior.spelling[symbol + 1]; ++i) {
            after.node = step(after.node, prior.letters[i]);
            if (prior.strict && after.node == nowhere) return false;
        }
        if (prior.lm_first && !prior.by_word) {
            if (!after.inside && after.state != prior.begin)  // the space before this word
                after.bonus += advance(after.state, prior.letter_words[prior.letter_count]) + prior.beta;
            for (int32_t i = prior.spelling[symbol]; i < prior.spelling[symbol + 1]; ++i)
                after.bonus += advance(after.state, prior.letter_words[prior.letters[i]]) + prior.beta;
        }
        after.inside = true;
        return true;
    }

    bool finish(const Memory& memory, double& bonus) {
        Memory ended = memory;
        const bool whole = !memory.inside || prior.space == nowhere || end_word(memory, ended);
        if (!whole) ended = memory;
        bonus = ended.bonus;
        if (prior.lm_first && ended.state != prior.begin) bonus += advance(ended.state, prior.end);
        return whole;
    }

    // The most that one symbol can add to a bonus, language models adding nothing above 0.
    double most_gain(int32_t symbol) const {
        const double beta = prior.lm_first ? std::max(0.0, prior.beta) : 0.0;
        if (symbol == prior.space) return prior.most_bonus + (prior.by_word ? beta : 0.0);
        return prior.by_word ? 0.0 : beta * (prior.spelling[symbol + 1] - prior.spelling[symbol] + 1);
    }

    void choose_candidates(const float* frame) {
        order.resize(size_t(prior.symbols));
        for (int32_t symbol = 0; symbol < prior.symbols; ++symbol) order[symbol] = symbol;
        auto before = [frame](int32_t a, int32_t b) { return frame[a] != frame[b] ? frame[a] > frame[b] : a < b; };
        const int64_t count = std::min<int64_t>(top_n, prior.symbols);
        std::partial_sort(order.begin(), order.begin() + count, order.end(), before);
        double sum = 0;
        int64_t used = 0;
        for (; used < count && sum < cutoff; ++used) sum += std::exp(double(frame[order[used]]));
        order.resize(size_t(used));
        order.erase(std::remove(order.begin(), order.end(), 0), order.end());
    }

    int32_t child_of(int32_t node, int32_t symbol) const {
        int32_t child = nodes[node].child;
        while (child != nowhere && nodes[child].symbol != symbol) child = nodes[child].sibling;
        return child;
    }

    // The score that the beam-th best of all that is known now has.
    double bound() {
        scores.clear();
        for (const Alive& each : alive) scores.push_back(each.next_score);
        for (const Extension& each : pool) scores.push_back(each.score);
        if (int64_t(scores.size()) < beam) return never;
        std::nth_element(scores.begin(), scores.begin() + (beam - 1), scores.end(), std::greater<double>());
        return scores[size_t(beam - 1)];
    }

    void accept(const float* frame) {
        choose_candidates(frame);
        auto heard = [frame](int32_t symbol) { return double(frame[symbol]); };
        for (int32_t symbol : order) considered[symbol] = 1;
        for (Alive& each : alive) {
            const Node& node = nodes[each.node];
            each.next_blank = heard(0) + each.both;
            each.next_label = never;
            if (considered[node.symbol]) {
                if (each.label > never) each.next_label = heard(node.symbol) + each.label;
                const int32_t slot = nodes[node.parent].slot;
                if (slot != nowhere) {
                    const double before = nodes[node.parent].symbol == node.symbol ? alive[slot].blank : alive[slot].both;
                    if (before > never) each.next_label = log_add(each.next_label, heard(node.symbol) + before);
                }
            }
            each.next_score = log_add(each.next_blank, each.next_label) + node.memory.bonus;
        }
        for (int32_t symbol : order) considered[symbol] = 0;
        pool.clear();
        double worst = bound();
        const size_t room = size_t(2 * beam) + 64;
        double gain = 0;
        for (int32_t symbol : order)
            if (symbol != prior.space) gain = std::max(gain, most_gain(symbol));
        for (size_t i = 0; i < alive.size(); ++i) {
            const double best = alive[i].both + nodes[alive[i].node].memory.bonus;
            for (int32_t symbol : order) {
                const bool space = symbol == prior.space;
                if (best + heard(symbol) + gain < worst && !space) {
                    if (prior.space == nowhere || best + heard(symbol) + most_gain(prior.space) < worst) break;
                    continue;
                }
                consider(alive[i], symbol, heard(symbol), worst);
            }
            if (pool.size() > room) {
                worst = std::max(worst, bound());
                pool.erase(std::remove_if(pool.begin(), pool.end(), [worst](const Extension& e) { return e.score < worst; }),
                           pool.end());
            }
        }
        select();
    }

    void consider(const Alive& parent, int32_t symbol, double heard, double worst) {
        const double before = nodes[parent.node].symbol == symbol ? parent.blank : parent.both;
        if (before <= never) return;
        const double label = heard + before, so_far = label + nodes[parent.node].memory.bonus;
        if (so_far + most_gain(symbol) < worst) return;
        Extension found{parent.node, symbol, child_of(parent.node, symbol), label, 0, {}};
        if (found.node != nowhere) {
            if (nodes[found.node].slot != nowhere) return;  // it lives and has its share already
            found.memory = nodes[found.node].memory;
        } else if (!extend(parent.node, symbol, found.memory)) {
            return;
        }
        found.score = label + found.memory.bonus;
        if (found.score >= worst) pool.push_back(found);
    }

    void select() {
        const int64_t living = int64_t(alive.size());
        ranks.clear();
        for (int64_t i = 0; i < living; ++i) ranks.push_back({alive[size_t(i)].next_score, i});
        for (size_t i = 0; i < pool.size(); ++i) ranks.push_back({pool[i].score, living + int64_t(i)});
        if (int64_t(ranks.size()) > beam) {
            std::nth_element(ranks.begin(), ranks.begin() + beam, ranks.end(), [this](auto a, auto b) {
                return a.first != b.first ? a.first > b.first : a.second != b.second && labels(a.second) < labels(b.second);
            });
            for (size_t i = size_t(beam); i < ranks.size(); ++i)
                if (ranks[i].second < living) nodes[alive[size_t(ranks[i].second)].node].slot = nowhere;
            ranks.resize(size_t(beam));
        }
        next.clear();
        for (auto [score, place] : ranks) {
            int32_t at;
            double blank = never, label;
            if (place < living) {
                const Alive& each = alive[size_t(place)];
                at = each.node, blank = each.next_blank, label = each.next_label;
            } else {
                const Extension& each = pool[size_t(place - living)];
                at = each.node, label = each.label;
                if (at == nowhere) {
                    at = int32_t(nodes.size());
                    nodes.emplace_back(each.memory, each.parent, each.symbol, int32_t(nodes[each.parent].child));
                    nodes[each.parent].child = at;
                }
            }
            nodes[at].slot = int32_t(next.size());
            next.push_back({at, blank, label, log_add(blank, label), 0, 0, 0});
        }
        alive.swap(next);
        if (nodes.size() > 2 * kept + 65536) forget();
    }

    // The labels of a rank, for ranks of the same score.
    std::vector<int32_t> labels(int64_t place) const {
        if (place < int64_t(alive.size())) return labels_of(alive[size_t(place)].node);
        const Extension& each = pool[size_t(place) - alive.size()];
        std::vector<int32_t> found = labels_of(each.parent);
        found.push_back(each.symbol);
        return found;
    }

    std::vector<int32_t> labels_of(int32_t node) const {
        std::vector<int32_t> found;
        for (; nodes[node].parent != nowhere; node = nodes[node].parent) found.push_back(nodes[node].symbol);
        std::reverse(found.begin(), found.end());
        return found;
    }

    // Drop all nodes that no living prefix passes.
    void forget() {
        std::vector<int32_t> place(nodes.size(), nowhere);
        for (const Alive& each : alive)
            for (int32_t node = each.node; node != nowhere && place[node] == nowhere; node = nodes[node].parent)
                place[node] = 0;
        int32_t count = 0;
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (place[i] == nowhere) continue;
            place[i] = count;
            Node node = nodes[i];  // parents come before their children
            node.child = node.sibling = nowhere;
            if (node.parent != nowhere) {
                node.parent = place[node.parent];
                node.sibling = nodes[node.parent].child;
                nodes[node.parent].child = count;
            }
            nodes[count++] = node;
        }
        nodes.erase(nodes.begin() + count, nodes.end());
        for (Alive& each : alive) each.node = place[each.node];
        kept = nodes.size();
    }
};

}  // namespace
}  // namespace seqloom

extern "C" {

// A new search, to be freed; the arrays of the prior must outlive it.
void seqloom_ctc_beam_new(void** search, int64_t beam, int64_t top_n, double cutoff, int32_t symbols, int32_t space,
                          const int32_t* spelling, const int32_t* letters, const int32_t* first, const int32_t* letter,
                          const int32_t* number, const double* word_bonus, int32_t strict, const int32_t* lm_first,
                          const int32_t* lm_word, const int32_t* lm_link, const float* lm_log_prob,
                          const float* lm_backoff, int32_t by_word, int32_t begin, int32_t end, int32_t unknown,
                          const int32_t* letter_words, int32_t letter_count, double alpha, double beta,
                          double most_bonus) {
    const seqloom::Prior prior{symbols, space, spelling, letters, first, letter, number, word_bonus, strict, lm_first,
                               lm_word, lm_link, lm_log_prob, lm_backoff, by_word, begin, end, unknown, letter_words,
                               letter_count, alpha, beta, most_bonus};
    *search = new seqloom::Search(prior, beam, top_n, cutoff);
}

void seqloom_ctc_beam_copy(const void* search, void** copied) {
    *copied = new seqloom::Search(*static_cast<const seqloom::Search*>(search));
}

void seqloom_ctc_beam_free(void* search) { delete static_cast<seqloom::Search*>(search); }

// log_probs [T, V], contiguous, none below -1e30.
void seqloom_ctc_beam_accept(void* search, const float* log_probs, int64_t frames) {
    auto* state = static_cast<seqloom::Search*>(search);
    for (int64_t t = 0; t < frames; ++t) state->accept(log_probs + t * state->prior.symbols);
}

// How many prefixes live, how long the longest is, and how many times the language model was asked.
void seqloom_ctc_beam_sizes(const void* search, int64_t* sizes) {
    const auto* state = static_cast<const seqloom::Search*>(search);
    size_t longest = 0;
    for (const auto& each : state->alive) longest = std::max(longest, state->labels_of(each.node).size());
    sizes[0] = int64_t(state->alive.size()), sizes[1] = int64_t(longest), sizes[2] = state->lookups;
}

// labels [alive, longest], lengths, ctc, bonus, whole [alive].
void seqloom_ctc_beam_read(void* search, int32_t* labels, int64_t longest, int64_t* lengths, double* ctc, double* bonus,
                           uint8_t* whole) {
    auto* state = static_cast<seqloom::Search*>(search);
    const int64_t lookups = state->lookups;
    for (size_t i = 0; i < state->alive.size(); ++i) {
        const std::vector<int32_t> found = state->labels_of(state->alive[i].node);
        std::copy(found.begin(), found.end(), labels + int64_t(i) * longest);
        lengths[i] = int64_t(found.size());
        ctc[i] = state->alive[i].both;
        whole[i] = state->finish(state->nodes[state->alive[i].node].memory, bonus[i]);
    }
    state->lookups = lookups;
}
}
