package atomicfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Previous is what is appended to the name of a file for the content that it had before.
const Previous = ".previous"

// ErrDamaged: what a file has is not what Save wrote.
var ErrDamaged = errors.New("its checksum is wrong")

const sealLen = 2*sha256.Size + 1

// seal appends the line by which the data, which end with a line, can be told from damaged ones.
func seal(data []byte) []byte {
	sum := sha256.Sum256(data)
	return append(hex.AppendEncode(bytes.Clone(data), sum[:]), '\n')
}

// unseal returns what was sealed.
func unseal(sealed []byte) ([]byte, error) {
	at := len(sealed) - sealLen
	if at < 0 || !bytes.Equal(seal(sealed[:at]), sealed) {
		return nil, ErrDamaged
	}
	return sealed[:at], nil
}

// Save is Write with a last line that holds the SHA-256 of all before it, which ends with a line itself. The content that the file had stays
// beside it under the name with Previous, unless it is damaged: then what is there already is the better one.
func Save(path string, data []byte, mode fs.FileMode) error {
	if err := keep(path); err != nil {
		return fmt.Errorf("keep %s: %w", path+Previous, err)
	}
	return Write(path, seal(data), mode)
}

func keep(path string) error {
	sealed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := unseal(sealed); err != nil {
		return nil
	}
	next := path + Previous + suffix
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(path, next); err != nil {
		return err
	}
	return os.Rename(next, path+Previous)
}

// Load returns what Save wrote to path last. If that is damaged, it returns ErrDamaged, and what is in the file.
func Load(path string) (data []byte, err error) {
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	data, err = unseal(sealed)
	if err != nil {
		return sealed, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}
