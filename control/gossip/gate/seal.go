package gate

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"slices"
	"sync/atomic"
)

// A sealed message is version, nonce, ciphertext with tag.
const (
	sealVersion  = 1 // AES-GCM without padding: what every node speaks
	nonceSize    = 12
	tagSize      = 16
	sealOverhead = 1 + nonceSize + tagSize
)

// A Keyring holds the keys with which messages are opened; the first one seals. Safe for concurrent use.
type Keyring struct{ keys atomic.Pointer[[]key] }

type key struct {
	raw  []byte
	aead cipher.AEAD
}

// NewKeyring returns a keyring with these keys, at least one, of 16, 24 or 32 bytes.
func NewKeyring(keys [][]byte) (*Keyring, error) {
	k := &Keyring{}
	return k, k.Set(keys)
}

// Set replaces all keys at once. On an error nothing changes.
func (k *Keyring) Set(keys [][]byte) error {
	var all []key
	for _, raw := range keys {
		block, err := aes.NewCipher(raw)
		if err != nil {
			return fmt.Errorf("cluster key: %w", err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return fmt.Errorf("cluster key: %w", err)
		}
		all = append(all, key{slices.Clone(raw), aead})
	}
	if len(all) == 0 {
		return fmt.Errorf("a keyring without a key")
	}
	k.keys.Store(&all)
	return nil
}

func (k *Keyring) primary() key { return (*k.keys.Load())[0] }

// seal appends the sealed message to dst.
func (k key) seal(dst, plain, also []byte) []byte {
	dst = append(dst, sealVersion)
	at := len(dst)
	dst = append(dst, make([]byte, nonceSize)...)
	nonce := dst[at : at+nonceSize]
	rand.Read(nonce) // never fails
	return k.aead.Seal(dst, nonce, plain, also)
}

// open returns the message, which holds at least one byte, and the key that it was sealed with.
func (k *Keyring) open(sealed, also []byte, s *seen) (plain []byte, with key, no *refusal) {
	switch {
	case len(sealed) < sealOverhead:
		return nil, with, refused(Truncated, "%d bytes that are no message", len(sealed))
	case sealed[0] != sealVersion:
		return nil, with, refused(Key, "it sends plaintext, or encrypts in another way: it has no cluster key")
	}
	nonce, text := sealed[1:1+nonceSize], sealed[1+nonceSize:]
	for _, one := range *k.keys.Load() {
		plain, err := one.aead.Open(nil, nonce, text, also)
		switch {
		case err != nil:
			continue
		case !s.first([nonceSize]byte(nonce)):
			return nil, with, refused(Replayed, "it sends a message that was here before")
		case len(plain) == 0:
			return nil, with, refused(Malformed, "an empty message")
		}
		return plain, one, nil
	}
	return nil, with, refused(Key, "it has another cluster key (no installed keys could decrypt the message)")
}
